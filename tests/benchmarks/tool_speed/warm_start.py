"""Measure the seconds of rows outside their training steps, with cold and warm starts in turns, on this machine.

    python -m tests.benchmarks.tool_speed.warm_start [--suite single_gpu_blip2] [--row ROW] [--without ROW] [--rounds 2]
        [--card CARD] [--size SIZE] [--gpus-per-node N] [--out FILE]

--suite, --row and --without may be given several times. Each round runs the rows of each suite twice, into folders of
their own: once with TESTBED_COLD_START=1, once without. The time of a row is the time between its start and its end in
the runner. This time includes the notebook and the check that the GPU is free. The time of its training steps is
train_s in result.json. The medians include the first row of a warm run, which waits for the warm process. Peaks and
outcomes are compared. FILE is written after each suite.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pytest
from rich.console import Console

from experiments.pipeline import run_suite
from experiments.results.provenance import git_commit
from experiments.results.schema import Result
from experiments.run_options import RunOptions
from experiments.runners.local.warm import COLD_START_VARIABLE
from experiments.runners.progress import View
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from experiments.system.files import write_atomically
from provision.hardware.local import this_machine

Mode = Literal["cold", "warm"]
MODES: tuple[Mode, ...] = ("cold", "warm")


@dataclass(frozen=True)
class TimedRow:
    """A row of one run: its result, and the seconds between its start and its end."""

    result: Result
    wall_s: float

    @property
    def outside_training_s(self) -> float:
        """Return the seconds outside the training steps."""
        return self.wall_s - (self.result.times.train_s if self.result.times else 0.0)


class Stopwatch(View):
    """A view that takes the times of rows."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.rows: dict[str, TimedRow] = {}
        self._started: dict[str, float] = {}

    def report_start(self, spec: RowSpec, why: str) -> None:
        super().report_start(spec, why)
        self._started[spec.row] = time.monotonic()

    def report_end(self, spec: RowSpec, result: Result) -> None:
        super().report_end(spec, result)
        if spec.row in self._started:
            self.rows[spec.row] = TimedRow(result, time.monotonic() - self._started[spec.row])


def run_rows(options: RunOptions, mode: Mode) -> tuple[dict[str, TimedRow], float]:
    """Run the rows of ``options``; return them by id, and the seconds of the whole run."""
    view = Stopwatch(Console(stderr=True, width=160))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(COLD_START_VARIABLE, "1" if mode == "cold" else "")
        begun = time.monotonic()
        run_suite(replace(options, results=Path(folder)), view)
        return view.rows, time.monotonic() - begun


def row_figures(runs: dict[Mode, list[TimedRow]]) -> dict[str, Any]:
    """Return outcomes, peaks (GiB) and times (s) of the runs of one row, by mode, and the difference of the peaks."""
    figures: dict[str, Any] = {}
    for mode, timed in runs.items():
        stages = [one.result.times.model_dump() for one in timed if one.result.times]
        figures[mode] = {
            "outcomes": sorted({one.result.outcome for one in timed}),
            "peaks_gib": [one.result.memory.peak_gib for one in timed],
            "outside_s": [round(one.outside_training_s, 2) for one in timed],
            "wall_s": [round(one.wall_s, 2) for one in timed],
            "stages_s": {name: round(median(one[name] for one in stages), 2) for name in stages[0]} if stages else {},
        }
    return figures | {"peak_difference_gib": peak_difference(figures)}


def peak_difference(figures: dict[str, Any]) -> float | None:
    """Return the largest difference between a cold and a warm peak, GiB; None if one is missing."""
    cold, warm = (figures[mode]["peaks_gib"] for mode in MODES)
    if None in (*cold, *warm):
        return None
    return max(abs(one - other) for one in cold for other in warm)


def summary(rows: dict[str, dict[str, Any]], runs_s: dict[Mode, list[float]]) -> dict[str, Any]:
    """Return medians over all rows (s), and the differences between cold and warm starts in peaks and outcomes."""
    outside = {mode: median(time_s for row in rows.values() for time_s in row[mode]["outside_s"]) for mode in MODES}
    differences = [row["peak_difference_gib"] for row in rows.values() if row["peak_difference_gib"] is not None]
    return {
        "outside_cold_s": outside["cold"],
        "outside_warm_s": outside["warm"],
        "warm_over_cold": outside["warm"] / outside["cold"],
        "runs_s": runs_s,
        "largest_peak_difference_gib": max(differences, default=None),
        "outcomes_differ": [name for name, row in rows.items() if row["cold"]["outcomes"] != row["warm"]["outcomes"]],
    }


def measured(
    timed: dict[str, dict[Mode, list[TimedRow]]], runs_s: dict[Mode, list[float]], rounds: int
) -> dict[str, Any]:
    """Return the figures of all runs so far, and where they were measured."""
    figures = {row: row_figures(runs) for row, runs in timed.items()}
    return {
        "on": this_machine().description,
        "git_commit": git_commit(),
        "load_average": os.getloadavg()[0],
        "rounds": rounds,
        **summary(figures, runs_s),
        "rows": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", action="append")
    parser.add_argument("--row", action="append", default=[])
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--card", default="auto")
    parser.add_argument("--size", default="auto")
    parser.add_argument("--gpus-per-node", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    timed: dict[str, dict[Mode, list[TimedRow]]] = {}
    runs_s: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    for _ in range(options.rounds):
        for suite in options.suite or ["single_gpu_blip2"]:
            known = [row.id for row in suite_named(suite).rows if row.id not in options.without]
            chosen = [row for row in known if not options.row or row in options.row]
            if not chosen:
                parser.error(f"{suite}: none of its rows is chosen; it has {', '.join(known)}")
            for mode in MODES:
                run = RunOptions(
                    suite=suite,
                    rows=tuple(chosen),
                    card=options.card,
                    size=options.size,
                    gpus_per_node=options.gpus_per_node,
                    run_id=mode,
                    results=Path(),
                    predict=False,
                )
                rows, run_s = run_rows(run, mode)
                runs_s[mode].append(round(run_s, 1))
                for row, one in rows.items():
                    timed.setdefault(f"{suite}/{row}", {mode: [] for mode in MODES})[mode].append(one)
            found = json.dumps(measured(timed, runs_s, options.rounds), indent=1)
            if options.out:
                write_atomically(options.out, found + "\n")
    print(found)


if __name__ == "__main__":
    main()
