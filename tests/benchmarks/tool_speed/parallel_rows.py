"""Run four rows on four GPUs of a cluster: compare the time in parallel with the time one after another, in one run.

    python -m tests.benchmarks.tool_speed.parallel_rows [--seconds 20] [--out FILE]

The cluster is a real Slurm on this machine. Fakes: the four GPUs; and the rows, which only sleep, so that the ratio
shows the overlap and not the competition of rows for resources. The work that a run does once before its first row
(folder, code, check of Python) is timed separately and subtracted on both sides.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from experiments.results.provenance import git_commit
from experiments.system.files import write_atomically
from tests.testbed.slurm.cluster import Cluster, started
from tests.testbed.slurm.runs import SlurmHarness

ROWS = "abcd"


@contextmanager
def new_run(cluster: Cluster) -> Iterator[SlurmHarness]:
    """Yield a new run."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        harness = SlurmHarness(Path(path), cluster)
        yield harness
        harness.close()


def seconds_taken(act: Callable[[], object]) -> float:
    """Return the seconds that ``act`` takes."""
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def startup_s(harness: SlurmHarness) -> float:
    """Return the seconds of a run before its first row."""
    runner = harness.runner({})
    return seconds_taken(lambda: runner._cluster.prepare(harness.folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20, help="that a row sleeps")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sleeping: dict[str, Any] = dict.fromkeys(ROWS, f"sleep-{options.seconds}")
    with started((4,)) as cluster:
        with new_run(cluster) as harness:
            once_s = startup_s(harness)
            together_s = seconds_taken(lambda: harness.run(ROWS, **sleeping))
            assert harness.outcomes() == dict.fromkeys(ROWS, "fits")
        with new_run(cluster) as harness:
            sequential_s = [seconds_taken(partial(harness.run, row, **sleeping)) for row in ROWS]
            assert harness.outcomes() == dict.fromkeys(ROWS, "fits")
    found = {
        "command": f"python -m tests.benchmarks.tool_speed.parallel_rows --seconds {options.seconds}",
        "on": "a Slurm on this machine with four fake GPUs; the rows are fakes that sleep",
        "git_commit": git_commit(),
        "rows_sleep_s": options.seconds,
        "startup_s": once_s,
        "together_s": together_s,
        "one_after_another_s": sequential_s,
        "together_over_one_after_another": (together_s - once_s) / sum(row_s - once_s for row_s in sequential_s),
    }
    print(json.dumps(found, indent=1))
    if options.out:
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
