"""Predict how the order of the training texts affects the memory of the rows that train the 7B model on four GPUs.

    python -m tests.benchmarks.prediction.text_orders [FOLDER]

Writes orders.md and orders.json into the folder (default: experiments/evidence/prediction_h200). Each row is predicted
for the same texts in ORDERS orders, at the lab's length and at the short length, which has the longest texts in its
second step. The tables have the reserved memory with the card's limit, and the needed memory, in GiB (minimum, median
and maximum of the orders).
"""

from statistics import median
from typing import Any

from experiments.prediction.predict import predict
from experiments.system.files import cache_folder
from tests.benchmarks.prediction.tables import folder_of, markdown, write
from tests.benchmarks.rows import row_spec

SUITE, CARD = "multi_gpu_litgpt", "a100_80gb"
ROWS = ("7b-4gpu-ddp", "7b-4gpu-fsdp")
ORDERS = 8


def main() -> None:
    folder = folder_of(__doc__)
    found: list[dict[str, Any]] = []
    for row in ROWS:
        for length in ("as-taught", "verdict"):
            predictions = predict(
                [row_spec(SUITE, row, CARD, "full", length, seed=seed) for seed in range(ORDERS)], cache_folder()
            )
            found.append(
                {
                    "row": row,
                    "length": length,
                    "reserved": _range_text([prediction.limited_reserved_gib for prediction in predictions]),
                    "needed": _range_text([prediction.needed_gib for prediction in predictions]),
                    "usable": f"{predictions[0].usable_gib:.2f}",
                    "ran out": f"{sum(prediction.failure is not None for prediction in predictions)} of {ORDERS}",
                }
            )
            print(found[-1], flush=True)
    write(folder, "orders", markdown(list(found[0]), [list(one.values()) for one in found]), found)


def _range_text(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in (min(values), median(values), max(values)))


if __name__ == "__main__":
    main()
