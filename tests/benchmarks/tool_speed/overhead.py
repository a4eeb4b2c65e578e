"""Measure the overhead of a row in seconds: queue, container, start of Python, papermill, download of results.

    python -m tests.benchmarks.tool_speed.overhead [--rounds 3] [--leased] [--out FILE]

The overhead is the time from the start to the end of the runner, less the time in which the row's worker runs, and less
the time of the work that a run does once before its first row. The overhead is measured on this machine, and on a real,
idle Slurm on this machine with fake GPUs. On Slurm the worker is a fake that does nothing and does not load torch. For
rows that follow each other in a run, started cold and warm in turns, it is the time between the end of a worker and the
start of the next. With --leased it is also measured for a row with a tiny model in a container, on a node that is
leased from OpenStack services on this machine and configured for it (needs root, takes some minutes). In this case the
overhead is the time of a command that runs the row, less the time of the same command when all rows have results, and
less the time of the checks before the first row.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from experiments.results.provenance import git_commit
from experiments.results.run_folder import RunFolder
from experiments.results.schema import RESULT_FILE, read_result
from experiments.runners.local.warm import COLD_START_VARIABLE
from experiments.runners.targets import ClusterTarget, target_named
from experiments.system.files import write_atomically
from tests.benchmarks.tool_speed.parallel_rows import new_run, seconds_taken, startup_s
from tests.testbed.chain.cli_user import SUITE, CliUser
from tests.testbed.chain.rehearse import cloud_with_nodes
from tests.testbed.slurm.cluster import started
from tests.testbed.slurm.runs import Harness, LocalHarness

COMMAND = "python -m tests.benchmarks.tool_speed.overhead"
ROW = "a"
ROWS = "abcdefg"
WARM_UP_ROWS = 2
LEASED_ROW = "reduced-batch"


def row_overhead_s(harness: Harness, once_s: float = 0.0) -> float:
    """Return the overhead of one row, seconds."""
    passed_s = seconds_taken(lambda: harness.run(ROW))
    assert harness.outcomes() == {ROW: "fits"}
    begun, ended = (float(line.split()[1]) for line in harness.journal.read_text().splitlines())
    return passed_s - (ended - begun) - once_s


def local_overhead_s() -> float:
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        return row_overhead_s(LocalHarness(Path(path), patch))


def between_rows_s(cold: bool) -> list[float]:
    """Return the seconds between the workers of consecutive rows; the first rows wait for the warm process."""
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv(COLD_START_VARIABLE, "1" * cold)
        harness = LocalHarness(Path(path), patch)
        harness.cpus = 1
        harness.run(ROWS)
        assert harness.outcomes() == dict.fromkeys(ROWS, "fits")
        times = [float(line.split()[1]) for line in harness.journal.read_text().splitlines()]
    gaps = [begun - ended for ended, begun in zip(times[1::2], times[2::2], strict=False)]
    return gaps[WARM_UP_ROWS:]


def leased_overhead_s(rounds: int) -> list[float]:
    """Return the overhead of a row in a container for each round, seconds."""
    with tempfile.TemporaryDirectory(prefix="testbed-overhead-") as folder, cloud_with_nodes(Path(folder)) as started:
        cli_user = CliUser(started)
        assert cli_user.start_reproduce("--keep", "--row", LEASED_ROW).end() in (0, 1)
        return [leased_row_overhead_s(cli_user, f"round-{number}") for number in range(rounds)]


def leased_row_overhead_s(cli_user: CliUser, run_id: str) -> float:
    passed_s, nothing_left_s = (seconds_taken(lambda: cli_user.start_run(run_id, LEASED_ROW).end()) for _ in range(2))
    folder = RunFolder(cli_user.results / run_id)
    result = read_result(folder.path / SUITE / LEASED_ROW / RESULT_FILE)
    assert result.outcome == "fits", result.reason
    place = target_named("chameleon", None, None)
    assert isinstance(place, ClusterTarget)
    prepared_s = seconds_taken(partial(place.cluster.prepare, folder))
    place.close()
    return passed_s - nothing_left_s - prepared_s - result.elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--leased", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    local_s = [local_overhead_s() for _ in range(options.rounds)]
    cold, warm = [], []
    for _ in range(options.rounds):
        cold += between_rows_s(cold=True)
        warm += between_rows_s(cold=False)
    slurm_s, once = [], []
    with started((4,)) as cluster:
        for _ in range(options.rounds):
            with new_run(cluster) as harness:
                startup_s(harness)
                once.append(startup_s(harness))
                slurm_s.append(row_overhead_s(harness, once[-1]))
    leased = leased_overhead_s(options.rounds) if options.leased else []
    found = {
        "command": f"{COMMAND} --rounds {options.rounds}{' --leased' * options.leased}",
        "on": f"{os.cpu_count()} cores; a Slurm on this machine, looked at every 0.5 s; the worker is a fake",
        "git_commit": git_commit(),
        "load_average": os.getloadavg()[0],
        "added_to_a_row_here_s": median(local_s),
        "between_rows_cold_s": median(cold),
        "between_rows_warm_s": median(warm),
        "warm_over_cold": median(warm) / median(cold),
        "added_to_a_row_on_slurm_s": median(slurm_s),
        "once_a_run_on_slurm_s": median(once),
        "added_to_a_row_on_a_leased_node_s": median(leased) if leased else None,
        "rounds": {
            "here": local_s,
            "cold": cold,
            "warm": warm,
            "on_slurm": slurm_s,
            "once": once,
            "on_a_leased_node": leased,
        },
    }
    print(json.dumps(found, indent=1))
    if options.out:
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
