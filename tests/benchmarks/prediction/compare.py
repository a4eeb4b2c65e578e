"""How far predictions are off from what was measured on a GPU: peak and reserved memory of each case.

    python -m tests.benchmarks.prediction.compare [FOLDER]

Reads what measure.py kept (default: experiments/evidence/prediction_h200), predicts each case on this machine, and
writes comparison.md and comparison.json into the folder. Errors are shares of what was measured; negative: too low.
Rows of several ranks (ranks/ROW/spec.json and what each rank measured beside it) have a table of their own.
"""

from collections.abc import Sequence
from typing import Any

from experiments.prediction.record import Prediction
from experiments.recipe import RowSpec
from experiments.result import Measured, Result
from tests.benchmarks.prediction.tables import compared, error, folder_of, markdown, measured, percent, summary, write

QUANTITIES = ("peak", "reserved")
HEAD = ["case", "peak predicted, GiB", "measured", "error", "reserved predicted, GiB", "measured", "error"]


def comparison(pairs: Sequence[tuple[Result, Prediction]]) -> dict[str, Any]:
    """Predicted and measured GiB and the error of each case, median and worst of all of them."""
    cases = {
        result.spec.row: {quantity: _quantity(quantity, result, prediction) for quantity in QUANTITIES}
        for result, prediction in pairs
    }
    errors = {quantity: [case[quantity]["error"] for case in cases.values()] for quantity in QUANTITIES}
    return {"cases": cases, "errors": {quantity: summary(values) for quantity, values in errors.items()}}


def _quantity(quantity: str, result: Measured, prediction: Prediction) -> dict[str, float]:
    gib = f"{quantity}_gib"
    was, said = getattr(result.memory, gib), getattr(prediction, gib)
    return {"predicted_gib": said, "measured_gib": was, "error": error(said, was)}


def over_ranks(folder: Path) -> dict[str, Any]:
    """The comparison of each rank of the rows that several ranks ran; every rank is predicted as the first."""
    rows = {path.parent.name: RowSpec.model_validate_json(path.read_bytes()) for path in folder.glob("ranks/*/spec.json")}
    cases = {}
    for (name, _), prediction in zip(rows.items(), predict(list(rows.values()), cache_folder()), strict=True):
        for path in sorted((folder / "ranks" / name).glob("rank-*.json")):
            measured_here = Measured.model_validate_json(path.read_bytes())
            cases[f"{name}, {path.stem}"] = {
                quantity: _compared(quantity, measured_here, prediction) for quantity in QUANTITIES
            }
    errors = {quantity: [case[quantity]["error"] for case in cases.values()] for quantity in QUANTITIES}
    return {"cases": cases, "errors": {quantity: summary(values) for quantity, values in errors.items()}}


def told(found: dict[str, Any]) -> str:
    """The comparison as a table, the summary under it."""
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
    found = comparison(compared(measured(folder)))
    write(folder, "comparison", told(found), found)


if __name__ == "__main__":
    main()
