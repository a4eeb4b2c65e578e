"""Inject a fault into one rank of a row on real GPUs, and report the outcome and what is left behind.

    python -m tests.benchmarks.training.failing_ranks [--out FILE]

Needs at least two GPUs. In turn, one rank runs out of memory, is killed with signal 9, or hangs until the time limit.
For each fault: the outcome, the seconds from the fault (for the hang: from the time limit) until the last process had
ended, the GPU memory still in use, and the processes still running.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pynvml

from experiments.results.provenance import git_commit
from experiments.results.schema import LOG_FILE
from experiments.system.files import write_atomically
from experiments.system.processes import find_tagged
from experiments.training.distributed import ranks
from experiments.training.worker import run_row
from provision.hardware.gpus import used_gib
from tests.benchmarks.rows import row_spec

SUITE, ROW, CARD = "slurm_hf_trainer", "neo-4gpu-ddp", "v100_32gb"
ROW_VARIABLE = "TESTBED_FAULTY_ROW"
TIME_LIMIT_S = {"oom": 300, "killed": 300, "hang": 60}
FREE_WITHIN_S = 5.0


def run_with_fault(fault: str, gpus: int) -> dict[str, object]:
    """Run the row with a fault in its second rank; return its outcome, and the processes and memory that remain."""
    spec = row_spec(SUITE, ROW, CARD, "full", "verdict", gpus, time_limit_s=TIME_LIMIT_S[fault])
    before = used_gib(range(gpus))
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FAULT": fault, ROW_VARIABLE: folder}
        result = run_row(spec, Path(folder), "")
        ended = time.time()
        log = (Path(folder) / LOG_FILE).read_text()
        left = find_tagged(ROW_VARIABLE, folder)
    fault_time = re.search(r"fault injected at ([\d.]+)", log)
    assert fault_time is not None, log
    from_s = begun + TIME_LIMIT_S[fault] if fault == "hang" else float(fault_time[1])
    time.sleep(FREE_WITHIN_S)
    after = used_gib(range(gpus))
    return {
        "fault": fault,
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pynvml.nvmlInit()
    gpus = min(4, pynvml.nvmlDeviceGetCount())
    ranks.RANK_MODULE = "tests.benchmarks.training.faulty_rank"
    results = []
    for fault in TIME_LIMIT_S:
        results.append(run_with_fault(fault, gpus))
        print(json.dumps(results[-1]), flush=True)
    if options.out:
        report = {
            "command": "python -m tests.benchmarks.training.failing_ranks",
            "git_commit": git_commit(),
            "struck": results,
        }
        write_atomically(options.out, json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
