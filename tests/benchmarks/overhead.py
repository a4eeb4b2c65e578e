"""Seconds that the program adds to a row: queue, start of Python, papermill, bringing home. Here and on a cluster.

    python -m tests.benchmarks.overhead [--rounds 3] [--out FILE]

A row's time from the runner's begin to its end, less the time in which its worker runs, and less what a run does once
before its first row. The cluster is a real, idle Slurm on this machine. Stand-ins: its GPUs are pretended, and the
worker does nothing and loads no torch, so that the start of torch is on neither side.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import pytest

from experiments.provenance import git_commit
from experiments.result import write_atomically
from tests.benchmarks.overlap import bed_of, startup_s, timed
from tests.testbed.slurm.cluster import started
from tests.testbed.slurm.runs import Bed, LocalBed

ROW = "a"


def added_s(bed: Bed, once_s: float = 0.0) -> float:
    """Seconds that are added to one row."""
    passed_s = timed(lambda: bed.run(ROW))
    assert bed.outcomes() == {ROW: "fits"}
    begun, ended = (float(line.split()[1]) for line in bed.journal.read_text().splitlines())
    return passed_s - (ended - begun) - once_s


def here_s() -> float:
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        return added_s(LocalBed(Path(path), patch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = [here_s() for _ in range(options.rounds)]
    there, once = [], []
    with started((4,)) as cluster:
        for _ in range(options.rounds):
            with bed_of(cluster) as bed:
                startup_s(bed)
                once.append(startup_s(bed))
                there.append(added_s(bed, once[-1]))
    found = {
        "command": f"python -m tests.benchmarks.overhead --rounds {options.rounds}",
        "on": f"{os.cpu_count()} cores; a Slurm on this machine, looked at every 0.5 s; the worker is a stand-in",
        "git_commit": git_commit(),
        "load_average": os.getloadavg()[0],
        "added_to_a_row_here_s": median(here),
        "added_to_a_row_on_slurm_s": median(there),
        "once_a_run_on_slurm_s": median(once),
        "rounds": {"here": here, "on_slurm": there, "once": once},
    }
    print(json.dumps(found, indent=1))
    if options.out:
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
