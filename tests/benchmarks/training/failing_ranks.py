"""Inject a fault into one rank of a row on real GPUs, and report the outcome and what is left behind.

    python -m tests.benchmarks.training.failing_ranks [--many-rows] [--out FILE]

Needs at least two GPUs. In turn, one rank runs out of memory, is killed with signal 9, or hangs until the time limit.
For each fault: the outcome, the seconds from the fault (for the hang: from the time limit) until the last process had
ended, the GPU memory still in use, and the processes still running. The ranks start cold, then from a warm process.
FILE is written after each fault. With --many-rows, instead, 20 rows without a fault start from one warm process, and
what the process holds after the first and after the last row is reported.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import psutil
import pynvml
import pytest

from experiments.results.provenance import git_commit
from experiments.results.schema import LOG_FILE
from experiments.runners.local.warm import WarmProcess, rank_modules
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.system.processes import find_tagged
from experiments.system.warm_start import RANK_SOCKET_VARIABLE
from experiments.training.distributed import ranks
from experiments.training.worker import run_row
from provision.hardware.gpus import used_gib
from provision.hardware.local import this_machine
from tests.benchmarks.rows import row_spec

SUITE, ROW, CARD = "slurm_hf_trainer", "neo-4gpu-ddp", "v100_32gb"
ROW_VARIABLE = "TESTBED_FAULTY_ROW"
TIME_LIMIT_S = {"oom": 300, "killed": 300, "hang": 25}
FREE_WITHIN_S = 5.0
MANY_ROWS = 20
Start = Literal["cold", "warm"]
STARTS: tuple[Start, ...] = ("cold", "warm")


def run_with_fault(fault: str, gpus: int, start: Start) -> dict[str, object]:
    """Run the row with a fault in its second rank; return its outcome, and the processes and memory that remain."""
    spec = row_spec(SUITE, ROW, CARD, "full", "verdict", gpus, time_limit_s=TIME_LIMIT_S[fault])
    before = used_gib(range(gpus))
    limits_reached: list[float] = []
    with tempfile.TemporaryDirectory() as folder, note_time_limits(limits_reached):
        os.environ |= {"FAULT": fault, ROW_VARIABLE: folder}
        with warm_ranks(spec) if start == "warm" else nullcontext():
            result = run_row(spec, Path(folder), "")
        ended = time.time()
        log = (Path(folder) / LOG_FILE).read_text()
        left = find_tagged(ROW_VARIABLE, folder)
    fault_time = re.search(r"fault injected at ([\d.]+)", log)
    assert fault_time is not None, log
    from_s = limits_reached[0] if fault == "hang" else float(fault_time[1])
    time.sleep(FREE_WITHIN_S)
    after = used_gib(range(gpus))
    return {
        "fault": fault,
        "start": start,
        "ranks": result.spec.settings.ranks,
        "device": result.device.name,
        "outcome": result.outcome,
        "reason": result.reason,
        "rank": result.failure.rank if result.failure else None,
        "stacks_of_ranks": len(re.findall(r"Current thread", log)),
        "gone_within_s": round(ended - from_s, 1),
        "processes_left": len(left),
        "gpu_gib_more_than_before": {index: round(after[index] - before[index], 3) for index in before},
        "shared_memory_left": [path.name for path in Path("/dev/shm").glob("nccl-*")],
    }


@contextmanager
def note_time_limits(reached: list[float]) -> Iterator[None]:
    """Append the time to ``reached``, in seconds since 1970, when ranks reach their time limit."""
    dump_stacks = ranks.Ranks.dump_stacks

    def note(self: ranks.Ranks) -> None:
        reached.append(time.time())
        dump_stacks(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks.Ranks, "dump_stacks", note)
        yield


@contextmanager
def warm_ranks(spec: RowSpec) -> Iterator[WarmProcess]:
    """Let ranks start from a warm process, which has completed its imports."""
    with (
        closing(WarmProcess(RANK_SOCKET_VARIABLE, rank_modules([spec]))) as warm,
        pytest.MonkeyPatch.context() as patch,
    ):
        warm.wait(lambda: False)
        assert warm.ready, warm.last_line_if_ended()
        patch.setenv(RANK_SOCKET_VARIABLE, warm.environment[RANK_SOCKET_VARIABLE])
        yield warm


def run_many_rows(rows: int, gpus: int) -> dict[str, object]:
    """Run the row's miniature several times from one warm process; return what the process holds over time."""
    spec = row_spec(SUITE, ROW, CARD, "tiny", "verdict", gpus, time_limit_s=120)
    outcomes, held = [], []
    with warm_ranks(spec) as warm:
        process = psutil.Process(warm.pid)
        for _ in range(rows):
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(run_row(spec, Path(folder), "").outcome)
            held.append(
                {
                    "memory_mib": round(process.memory_info().rss / 2**20, 1),
                    "open_files": process.num_fds(),
                    "child_processes": len(process.children()),
                    "shared_memory_files": len(list(Path("/dev/shm").iterdir())),
                    "gpu_gib": {index: round(gib, 3) for index, gib in used_gib(range(gpus)).items()},
                }
            )
    return {"rows": rows, "outcomes": sorted(set(outcomes)), "after_first": held[0], "after_last": held[-1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--many-rows", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pynvml.nvmlInit()
    gpus = min(4, pynvml.nvmlDeviceGetCount())
    report: dict[str, Any] = {
        "command": f"python -m tests.benchmarks.training.failing_ranks{' --many-rows' * options.many_rows}",
        "on": this_machine().description,
        "git_commit": git_commit(),
    }

    def store() -> None:
        print(json.dumps(report), flush=True)
        if options.out:
            write_atomically(options.out, json.dumps(report, indent=1) + "\n")

    if options.many_rows:
        report |= run_many_rows(MANY_ROWS, gpus)
        store()
        return 0
    ranks.RANK_MODULE = "tests.benchmarks.training.faulty_rank"
    report["faults"] = []
    for start in STARTS:
        for fault in TIME_LIMIT_S:
            report["faults"].append(run_with_fault(fault, gpus, start))
            store()
    return 0


if __name__ == "__main__":
    sys.exit(main())
