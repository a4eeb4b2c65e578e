"""Compare the values that the labs state with predicted values, for every row of every suite on every card.

    python -m tests.benchmarks.prediction.stated_values [FOLDER]

Writes cells.md and cells.json into the folder (default: experiments/evidence/prediction_h200). The first table has the
outcomes. The second has the memory that the lab prints, with the error relative to the nearer end of the range (0
inside the range).
"""

from typing import Any

from experiments.prediction.as_result import convert_to_result
from experiments.prediction.predict import predict
from experiments.prediction.service import select_rows
from experiments.results.predictions import Prediction
from experiments.results.quantities import QUANTITIES
from experiments.suites.suite import ReferenceValue, suite_named
from experiments.system.files import cache_folder
from tests.benchmarks.prediction.tables import folder_of, markdown, percent, write

MEMORY = ("reserved_gib", "allocated_after_forward_gib")


def cells() -> list[dict[str, Any]]:
    """Return stated and predicted values of each row on each card; for a row that cannot be traced, the reason."""
    specs, failed = select_rows(None, None), {}
    found = predict(
        specs, cache_folder(), on_failure=lambda spec, problem: failed.update({spec.fingerprint: str(problem)})
    )
    by_spec = {prediction.spec.fingerprint: prediction for prediction in found}
    made = []
    for spec in specs:
        expect = suite_named(spec.suite).row(spec.row).expect
        prediction = by_spec.get(spec.fingerprint)
        cell: dict[str, Any] = {"suite": spec.suite, "row": spec.row, "card": spec.card, "stated": expect.outcome}
        if prediction is None:
            made.append(cell | {"problem": failed[spec.fingerprint]})
            continue
        made.append(
            cell
            | {
                "predicted": prediction.likely_outcome,
                "verdict": prediction.predicted_outcome,
                "agrees": expect.outcome in (None, prediction.likely_outcome),
                "peak_gib": prediction.peak_gib,
                "reserved_gib": prediction.limited_reserved_gib,
                "margin_gib": prediction.margin_gib,
                "figures": [
                    _reference_record(value, prediction)
                    for value in expect.reference_values
                    if value.quantity in MEMORY
                ],
            }
        )
    return made


def _reference_record(value: ReferenceValue, prediction: Prediction) -> dict[str, Any]:
    found = QUANTITIES[value.quantity](convert_to_result(prediction))
    assert found is not None, "memory is always predicted"
    error = found / value.low - 1 if found < value.low else max(0.0, found / value.high - 1)
    return {"quantity": value.quantity, "low": value.low, "high": value.high, "predicted": found, "error": error}


def tables_with_summary(made: list[dict[str, Any]]) -> str:
    """Return both tables, and the number of cells that agree."""
    rows, figures = [], []
    for cell in made:
        name = [f"{cell['suite']}/{cell['row']}", cell["card"], cell["stated"] or ""]
        if "problem" in cell:
            rows.append([*name, cell["problem"], "", "", ""])
            continue
        margin = f"{cell['margin_gib']:+.2f}"
        rows.append([*name, cell["verdict"], f"{cell['peak_gib']:.2f}", margin, "yes" if cell["agrees"] else "NO"])
        for one in cell["figures"]:
            stated = f"{one['low']:.2f} to {one['high']:.2f}"
            figures.append([*name[:2], one["quantity"], stated, f"{one['predicted']:.2f}", percent(one["error"])])
    agree = sum(cell.get("agrees", False) for cell in made)
    head = ["row", "card", "stated", "predicted", "peak, GiB", "margin, GiB", "agrees"]
    figure_head = ["row", "card", "reference value", "stated, GiB", "predicted, GiB", "error"]
    return f"{markdown(head, rows)}\n{agree} of {len(made)} cells agree.\n\n{markdown(figure_head, figures)}"


def main() -> None:
    folder = folder_of(__doc__)
    made = cells()
    write(folder, "cells", tables_with_summary(made), {"cells": made})


if __name__ == "__main__":
    main()
