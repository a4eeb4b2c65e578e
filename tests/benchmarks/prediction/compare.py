"""Compare predictions with measurements on a GPU: peak and reserved memory of each case.

    python -m tests.benchmarks.prediction.compare [FOLDER]

Reads the results of measure.py (default: experiments/evidence/prediction_h200), predicts each case on this machine, and
writes comparison.md and comparison.json into the folder. Errors are relative to the measurement; negative: the
prediction is too low. Rows with several ranks (ranks.jsonl: the specification of each row and the measurements of its
ranks) have a separate table.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.prediction.predict import predict
from experiments.results.predictions import Prediction
from experiments.results.schema import Measured
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from tests.benchmarks.prediction.tables import (
    compared,
    folder_of,
    markdown,
    measured,
    percent,
    relative_error,
    summary,
    write,
)

QUANTITIES = ("peak", "reserved")
HEAD = ["case", "peak predicted, GiB", "measured", "error", "reserved predicted, GiB", "measured", "error"]

Pair = tuple[str, Measured, Prediction]


def comparison(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return predicted and measured GiB and the error of each case, and the median and largest error."""
    cases = {
        name: {quantity: _compared_quantity(quantity, result, prediction) for quantity in QUANTITIES}
        for name, result, prediction in pairs
    }
    errors = {quantity: [case[quantity]["error"] for case in cases.values()] for quantity in QUANTITIES}
    return {"cases": cases, "errors": {quantity: summary(values) for quantity, values in errors.items()}}


def _compared_quantity(quantity: str, result: Measured, prediction: Prediction) -> dict[str, float]:
    gib = f"{quantity}_gib"
    was, predicted = getattr(result.memory, gib), getattr(prediction, gib)
    return {"predicted_gib": predicted, "measured_gib": was, "error": relative_error(predicted, was)}


def pairs_of_ranks(folder: Path) -> list[Pair]:
    """Return each rank of the rows with several ranks: its measurement, and the prediction of the first rank."""
    path = folder / "ranks.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    predictions = predict([RowSpec.model_validate(row["spec"]) for row in rows], cache_folder())
    return [
        (f"{row['name']}, rank-{rank}", Measured.model_validate(measurement), prediction)
        for row, prediction in zip(rows, predictions, strict=True)
        for rank, measurement in enumerate(row["ranks"])
    ]


def table_with_summary(found: dict[str, Any]) -> str:
    """Return the comparison as a table, followed by the summary."""
    rows = []
    for name, case in found["cases"].items():
        rows.append([name])
        for quantity in QUANTITIES:
            values = case[quantity]
            rows[-1] += [f"{values['predicted_gib']:.2f}", f"{values['measured_gib']:.2f}", percent(values["error"])]
    lines = [
        f"{quantity}: median error {values['median']:.2%}, worst {values['worst']:.2%} of {len(rows)} cases"
        for quantity, values in found["errors"].items()
    ]
    return markdown(HEAD, rows) + "\n" + "\n\n".join(lines) + "\n"


def main() -> None:
    folder = folder_of(__doc__)
    one = comparison([(result.spec.row, result, prediction) for result, prediction in compared(measured(folder))])
    several = comparison(pairs_of_ranks(folder))
    text = f"One GPU:\n\n{table_with_summary(one)}\nSeveral ranks, a GPU each:\n\n{table_with_summary(several)}"
    write(folder, "comparison", text, {"one_gpu": one, "several_ranks": several})


if __name__ == "__main__":
    main()
