"""Measure the memory of ranks alone on one GPU, and compare it with a run on all GPUs.

    python -m tests.benchmarks.training.rank_memory measure FILE    on a GPU
    python -m tests.benchmarks.training.rank_memory compare         without a GPU

Collective operations only copy the rank's own data on the GPU, so they take less time than between GPUs. ``measure``
runs each rank of the rows in ranks.jsonl and appends its memory in GiB to FILE. ``compare`` reads
prediction_h200/lone_ranks.jsonl and writes lone_ranks.md.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from experiments.results.schema import Measured
from experiments.suites.row_spec import RowSpec
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error
from tests.benchmarks.training.ranks_alone import measure_rank

QUANTITIES = ("peak_gib", "reserved_gib")


def rows() -> list[dict[str, Any]]:
    """Return the rows that were measured on all their GPUs."""
    return [json.loads(line) for line in (EVIDENCE / "ranks.jsonl").read_text().splitlines()]


def measure(file: Path) -> None:
    importlib.import_module("experiments.training.rank")  # once, before the ranks are forked
    for row in rows():
        for rank in range(len(row["ranks"])):
            memory = run_in_fork(measure_rank, RowSpec.model_validate(row["spec"]), rank).memory
            gib = {quantity: getattr(memory, quantity) for quantity in QUANTITIES}
            with file.open("a") as out:
                print(json.dumps({"row": row["name"], "rank": rank, **gib}), file=out, flush=True)


def compare() -> None:
    measured = {
        (row["name"], rank): Measured.model_validate(result).memory
        for row in rows()
        for rank, result in enumerate(row["ranks"])
    }
    cells = []
    for line in (EVIDENCE / "lone_ranks.jsonl").read_text().splitlines():
        alone = json.loads(line)
        memory = measured[alone["row"], alone["rank"]]
        cells.append([alone["row"], alone["rank"]])
        for quantity in QUANTITIES:
            together = getattr(memory, quantity)
            error = percent(relative_error(alone[quantity], together))
            cells[-1] += [f"{alone[quantity]:.2f}", f"{together:.2f}", error]
    head = ["row", "rank", "peak alone, GiB", "on all GPUs", "difference", "reserved alone, GiB", "on all GPUs"]
    (EVIDENCE / "lone_ranks.md").write_text(markdown([*head, "difference"], cells))


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        compare()
