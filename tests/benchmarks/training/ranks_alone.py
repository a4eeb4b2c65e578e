"""Measure each rank of the row that trains the 7B model with DDP on one GPU alone, for several orders of the texts.

    python -m tests.benchmarks.training.ranks_alone measure FILE [--orders 4] [--size full]
    python -m tests.benchmarks.training.ranks_alone compare FILE TABLE

Four GPUs are not needed: under DDP a rank's memory depends on its own texts, not on the values that other ranks send.
``measure`` therefore runs one rank after another on GPU 0, within the memory limit of the row's card. The collective
operations are those of the phantom device: they transfer nothing, and keep their tensors as long as NCCL's do. NCCL's
own buffers, which PyTorch's allocator does not count, are missing.

``measure`` appends a line of JSON for each rank and order, and skips lines that the file already has. ``compare``
predicts the same ranks without a GPU and writes a table of GiB.
"""

import argparse
import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from experiments.prediction.phantom.library import Phantom, load
from experiments.results.provenance import code_sha256, git_commit
from experiments.results.schema import Measured
from experiments.suites.choices import Size
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.rank_texts import predict_with_texts_of
from tests.benchmarks.prediction.tables import markdown
from tests.benchmarks.rows import row_spec

SUITE, ROW, CARD = "multi_gpu_litgpt", "7b-4gpu-ddp", "a100_80gb"
RANKS = 4


class NoPhantom:
    """Replaces the phantom device on a real device, for the simulated collective operations. It logs nothing.

    The simulated operations assume that the host has waited for the device, as Lightning does after each step.
    """

    def operation_count(self) -> int:
        return 0

    def operations(self, begin: int, end: int) -> list[str]:
        from experiments.prediction.phantom.ranks import HOST_WAIT_PREFIX

        return [HOST_WAIT_PREFIX]

    def log_operation(self, key: str) -> None: ...

    def ignore_gpu_numbers(self) -> None: ...


def measure_rank(spec: RowSpec, rank: int) -> Measured:
    """Return the measurements of a rank of the row, which has GPU 0 for itself."""
    import torch

    from experiments.prediction.phantom.ranks import simulate_ranks
    from experiments.training.rank import hide_bitsandbytes, run_rank

    torch.zeros(1, device="cuda")  # before the number of GPUs is replaced
    hide_bitsandbytes()
    with tempfile.TemporaryDirectory() as folder:
        simulate_ranks(spec.settings.devices, 1, cast(Phantom, NoPhantom()), Path(folder, "ranks"), rank)
        os.environ["LOCAL_RANK"] = "0"
        return run_rank(spec, Path(folder))


def measure(path: Path, orders: int, size: Size) -> None:
    importlib.import_module("experiments.training.rank")  # once, before the ranks are forked
    done = {(line["order"], line["rank"]) for line in _read_measurements(path)}
    for order in range(orders):
        spec = row_spec(SUITE, ROW, CARD, size, "verdict", seed=order)
        for rank in range(RANKS):
            if (order, rank) in done:
                continue
            measured = run_in_fork(measure_rank, spec, rank)
            _append(path, {"order": order, "rank": rank, "size": size, **_summary(measured)})


def _summary(measured: Measured) -> dict[str, Any]:
    return {
        "outcome": measured.outcome,
        "reason": measured.reason,
        "peak_gib": measured.memory.peak_gib,
        "reserved_gib": measured.memory.reserved_gib,
        "device": measured.device.name,
        "cap_gib": measured.device.cap_gib,
        "git_commit": git_commit(),
        "code": code_sha256(),
    }


def _read_measurements(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, line: dict[str, Any]) -> None:
    print(line, flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def compare(path: Path, table: Path) -> None:
    phantom = load(cache_folder())
    rows = []
    for line in sorted(_read_measurements(path), key=lambda line: (line["order"], line["rank"])):
        spec = row_spec(SUITE, ROW, CARD, line["size"], "verdict", seed=line["order"])
        found = predict_with_texts_of(line["rank"], spec, phantom)
        measured, predicted = f"{line['peak_gib']:.2f}", f"{found.peak_gib:.2f}"
        needed, usable = f"{found.needed_gib:.2f}", f"{found.usable_gib:.2f}"
        verdict = "oom" if found.failure else "fits"
        rows.append(
            [str(line["order"]), str(line["rank"]), line["outcome"], measured, verdict, predicted, needed, usable]
        )
        print(*rows[-1], flush=True)
    head = ["order", "rank", "outcome", "peak", "predicted outcome", "predicted peak", "needed", "usable"]
    table.write_text(markdown(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("file", type=Path)
    measuring.add_argument("--orders", type=int, default=4)
    measuring.add_argument("--size", choices=["full", "tiny"], default="full")
    comparing = commands.add_parser("compare")
    comparing.add_argument("file", type=Path)
    comparing.add_argument("table", type=Path)
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.file, options.orders, options.size)
    else:
        compare(options.file, options.table)


if __name__ == "__main__":
    main()
