"""Compare the predicted wall time of rows, from start to end, with the measured one.

    python -m tests.benchmarks.training.wall_times [FOLDER]

Reads FOLDER/step_times.json (default: experiments/evidence/prediction_h100), which the benchmark step_times writes, and
the stored runs at full size of the same rows, which were measured on a GPU with the same chip. The time besides the
steps is the median over the rows of other suites. A run of length verdict may end anywhere in an interval; its middle
is compared. Writes wall_times.md and wall_times.json into the folder, without a GPU.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.history.durations import StoredTimes
from experiments.results.run_folder import Run
from experiments.results.schema import Result, Speed
from experiments.training.measure.schedule import schedule_of
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, summary, write

MIN_ROWS = 3
"""Runs with fewer rows are not compared as a whole."""


class WallTimeComparison(NamedTuple):
    """Predicted and measured wall time of a row, s."""

    run: str
    row: str
    low_s: float
    high_s: float
    measured_s: float

    @property
    def middle_s(self) -> float:
        return (self.low_s + self.high_s) / 2


def compare_wall_time(run: Run, result: Result, speed: Speed, step_s: float, others: StoredTimes) -> WallTimeComparison:
    """Return the wall time of a row whose step is predicted as ``step_s``. others: runs of other suites."""
    accumulate = result.spec.settings.accumulate
    schedule = schedule_of(run.length, speed.planned_micro_steps, accumulate)
    time_outside_steps_s = others.time_outside_steps_s(len(result.ranks) > 1)
    low_s, high_s = (
        time_outside_steps_s + micro_steps / accumulate * step_s for micro_steps in (schedule.minimum, schedule.maximum)
    )
    return WallTimeComparison(run.run_id, f"{run.suite}/{result.spec.row}", low_s, high_s, result.elapsed_s)


def all_compared(stored: StoredTimes, step_s: dict[tuple[str, str], float]) -> list[WallTimeComparison]:
    """Compare each stored row at full size whose step is predicted. step_s: by SUITE/ROW and card."""
    found = []
    for run, result in stored.results:
        predicted_s = step_s.get((f"{run.suite}/{result.spec.row}", result.spec.card))
        if run.size == "full" and result.outcome == "fits" and result.speed and predicted_s:
            others = StoredTimes(tuple(one for one in stored.results if one[0].suite != run.suite), ())
            found.append(compare_wall_time(run, result, result.speed, predicted_s, others))
    return found


def totals(rows: Sequence[WallTimeComparison]) -> list[WallTimeComparison]:
    """Return the sum of the rows of each run with enough rows."""
    found = []
    for run in dict.fromkeys(row.run for row in rows):
        own = [row for row in rows if row.run == run]
        if len(own) >= MIN_ROWS:
            low_s, high_s = sum(row.low_s for row in own), sum(row.high_s for row in own)
            found.append(WallTimeComparison(run, f"{len(own)} rows", low_s, high_s, sum(row.measured_s for row in own)))
    return found


def main() -> None:
    """Compare all rows and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=EVIDENCE.parent / "prediction_h100")
    folder = parser.parse_args().folder
    steps = json.loads((folder / "step_times.json").read_text())["rows"]
    step_s = {(one["row"], one["card"]): one["predicted_s"] for one in steps}
    rows = all_compared(StoredTimes.read(folder / "none"), step_s)
    runs, head = totals(rows), ["run", "row", "predicted, s", "measured, s", "error of the middle"]
    lines = [
        [one.run, one.row, f"{one.low_s:.0f} to {one.high_s:.0f}", f"{one.measured_s:.0f}", percent(_error(one))]
        for one in (*runs, *rows)
    ]
    of_rows, of_runs = _summary(rows), _summary(runs)
    data = {"rows": [one._asdict() for one in rows], "errors": of_rows, "errors_of_runs": of_runs}
    text = markdown(head, lines) + (
        f"\nRows: mean error {of_rows['mean']:.1%}, worst {of_rows['worst']:.1%}. Sums of runs:"
        f" mean {of_runs['mean']:.1%}, worst {of_runs['worst']:.1%}.\n"
    )
    write(folder, "wall_times", text, data)


def _summary(found: Sequence[WallTimeComparison]) -> dict[str, float]:
    errors = [_error(one) for one in found]
    return {"mean": fmean(map(abs, errors))} | summary(errors)


def _error(one: WallTimeComparison) -> float:
    return relative_error(one.middle_s, one.measured_s)


if __name__ == "__main__":
    main()
