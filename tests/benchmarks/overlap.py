"""Four rows of one GPU each on a cluster of four: together, over one after another. Both in one run.

    python -m tests.benchmarks.overlap [--seconds 20] [--out FILE]

The cluster is a real Slurm on this machine. Stand-ins: its four GPUs are pretended, and the rows sleep, so that the
figure is of the program's overlapping alone, not of what rows take from each other. What a run does once, before its
first row (folder, code, a look whether Python starts there), is timed apart and taken off both sides.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.results.provenance import git_commit
from experiments.system.files import write_atomically
from tests.testbed.slurm.cluster import Cluster, started
from tests.testbed.slurm.runs import SlurmBed

ROWS = "abcd"


@contextmanager
def bed_of(cluster: Cluster) -> Iterator[SlurmBed]:
    """A run of its own."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        bed = SlurmBed(Path(path), cluster)
        yield bed
        bed.close()


def timed(act: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def startup_s(bed: SlurmBed) -> float:
    """Seconds of what a run does before its first row."""
    runner = bed.runner({})
    return timed(lambda: runner._cluster.prepare(bed.folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20, help="that a row sleeps")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sleeping = dict.fromkeys(ROWS, f"sleep-{options.seconds}")
    with started((4,)) as cluster:
        with bed_of(cluster) as bed:
            once_s = startup_s(bed)
            together_s = timed(lambda: bed.run(ROWS, **sleeping))
            assert bed.outcomes() == dict.fromkeys(ROWS, "fits")
        with bed_of(cluster) as bed:
            alone_s = [timed(lambda row=row: bed.run(row, **sleeping)) for row in ROWS]
            assert bed.outcomes() == dict.fromkeys(ROWS, "fits")
    found = {
        "command": f"python -m tests.benchmarks.overlap --seconds {options.seconds}",
        "on": "a Slurm on this machine with four pretended GPUs; rows are stand-ins that sleep",
        "git_commit": git_commit(),
        "rows_sleep_s": options.seconds,
        "startup_s": once_s,
        "together_s": together_s,
        "one_after_another_s": alone_s,
        "together_over_one_after_another": (together_s - once_s) / sum(one - once_s for one in alone_s),
    }
    print(json.dumps(found, indent=1))
    if options.out:
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
