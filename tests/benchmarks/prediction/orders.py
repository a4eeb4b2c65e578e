"""What the order of the texts does to the memory of rows that nearly fill their card.

    python -m tests.benchmarks.prediction.orders [FOLDER]

Writes orders.md and orders.json into the folder (default: experiments/evidence/prediction_h200). Each row is predicted
for the same texts in ORDERS orders, as the material trains it and in the short length, which has the longest texts in
its second step: what is reserved under the card's limit, and the least memory with which the training gets through.
"""

from statistics import median
from typing import Any

from experiments.cache import cache_folder
from experiments.card import card_named
from experiments.prediction.predict import predict
from tests.benchmarks.prediction.tables import folder_of, markdown, write
from tests.benchmarks.rows import row_spec

SUITE = "multi_gpu_litgpt"
ROWS = {
    "a100_80gb": ("7b-1gpu", "7b-1gpu-acc4", "7b-4gpu-ddp", "7b-4gpu-fsdp", "7b-4gpu-fsdp-b8"),
    "v100_32gb": ("1b-4gpu-ddp", "1b-4gpu-fsdp", "3b-4gpu-fsdp"),
}
ORDERS = 8


def main() -> None:
    folder = folder_of(__doc__)
    found: list[dict[str, Any]] = []
    for card, rows in ROWS.items():
        usable_gib = card_named(card).usable_gib
        for row in rows:
            for length in ("as-taught", "verdict"):
                specs = [row_spec(SUITE, row, card, "full", length, seed=seed) for seed in range(ORDERS)]
                predictions = predict(specs, cache_folder())
                needed = [prediction.needed_gib for prediction in predictions]
                found.append(
                    {
                        "row": row,
                        "card": card,
                        "length": length,
                        "orders": len(predictions),
                        "reserved_gib": _range([prediction.limited_reserved_gib for prediction in predictions]),
                        "needed_gib": _range(needed),
                        "usable_gib": usable_gib,
                        "need_more": sum(least > usable_gib for least in needed),
                    }
                )
                print(found[-1], flush=True)
    head = ["row", "length", "reserved GiB", "needed GiB", "usable GiB", "orders that need more"]
    cells = [
        [
            one["row"],
            one["length"],
            " / ".join(f"{gib:.2f}" for gib in one["reserved_gib"]),
            " / ".join(f"{gib:.2f}" for gib in one["needed_gib"]),
            f"{one['usable_gib']:.2f}",
            f"{one['need_more']} of {one['orders']}",
        ]
        for one in found
    ]
    write(folder, "orders", markdown(head, cells), {"rows": found})


def _range(values: list[float]) -> list[float]:
    """Least, median and most."""
    return [min(values), median(values), max(values)]


if __name__ == "__main__":
    main()
