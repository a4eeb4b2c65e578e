"""Compare the predicted wall time of rows and of whole runs with the measured one.

    python -m tests.benchmarks.wall_times.compare

Rows: those of the stored runs on an H200 whose code reports stages, if step_times.json of prediction_h200 or
prediction_h100, or wall_predicted.json, has the predicted time of their steps. The time of a row counts from the
construction of its model to its end, because older code needed longer to start. The seconds outside of the steps are
fitted to all other runs. A run of length verdict may end after different numbers of steps; the expected number is
compared. After a quarter of the rows of a run, the remaining time is estimated from these rows.

Whole runs: those in wall_runs.jsonl, from their start to the end of their last row, compared with wall_predicted.json,
which was written before they ran (see runs.py). Writes wall_times.md and wall_times.json into
experiments/evidence/prediction_h200, without a GPU.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from statistics import fmean
from typing import Any, NamedTuple

from experiments.history.durations import RowTime, StoredTimes, expected_steps
from experiments.history.lease_length import TimeRange
from experiments.history.outside_steps import OutsideSteps, row_parts
from experiments.results.run_folder import Run
from experiments.results.schema import Progress, Result
from experiments.runners.progress import RowState
from experiments.runners.remaining import ExpectedTime, RemainingTime, makespan_s
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, summary, write
from tests.benchmarks.wall_times.outside_steps import fitted
from tests.benchmarks.wall_times.runs import FinishedRun, began_s, ended_s, finished_runs

MIN_ROWS = 3
"""Runs with fewer rows are not compared as a whole."""
ENDED_SHARE = 0.25
STEP_TABLES = EVIDENCE.parent / "prediction_h100", EVIDENCE
PREDICTED_FILE = EVIDENCE / "wall_predicted.json"
WAYS = {"measured_steps": "steps measured before", "predicted_steps": "steps predicted"}
HEAD = ("run", "row", "predicted, s", "measured, s", "error")
RUN_HEAD = ("run", "rows", "steps", "predicted, s", "interval, s", "measured, s", "error", "remaining after a quarter")


class Compared(NamedTuple):
    """Predicted and measured time of a row, or the sum of rows, s. result: of one row."""

    run: str
    row: str
    predicted_s: float
    measured_s: float
    result: Result | None = None

    @property
    def error(self) -> float:
        return relative_error(self.predicted_s, self.measured_s)

    @property
    def data(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "result"}

    @property
    def cells(self) -> list[str]:
        return [self.run, self.row, f"{self.predicted_s:.1f}", f"{self.measured_s:.1f}", percent(self.error)]


def step_seconds() -> dict[tuple[str, str], float]:
    """Return the predicted seconds of a step by SUITE/ROW and card."""
    tables = (json.loads((folder / "step_times.json").read_text())["rows"] for folder in STEP_TABLES)
    predicted = json.loads(PREDICTED_FILE.read_text())
    found = {(row, predicted["card"]): step_s for row, step_s in predicted["step_s"].items()}
    return found | {(one["row"], one["card"]): one["predicted_s"] for rows in tables for one in rows}


def compare_row(run: Run, result: Result, step_s: float, outside: OutsideSteps) -> Compared:
    """Return the time of a row from the construction of its model to its end."""
    assert result.speed, "a row without a speed"
    assert result.times, "a row without stages"
    parts = row_parts(result.spec.settings, result.parameters or 0, result.spec.card)
    steps = expected_steps(result.spec, result.speed.planned_micro_steps, step_s, outside)
    predicted_s = outside.row_s(parts, "build", "first steps", "end") + steps[1] * step_s
    return Compared(run.run_id, result.spec.row, predicted_s, result.elapsed_s - result.times.start_s, result)


def compare_stored(stored: StoredTimes, newest: Sequence[FinishedRun]) -> list[Compared]:
    """Compare each stored row whose step is predicted, including those of the runs ``newest``."""
    found, fits, steps = [], {}, step_seconds()
    for run, result in [*stored.results, *((one.run, row) for one in newest for row in one.rows)]:
        step_s = steps.get((f"{run.suite}/{result.spec.row}", result.spec.card))
        if run.size != "full" or result.outcome != "fits" or not (result.times and result.speed and step_s):
            continue
        if run.run_id not in fits:
            others = StoredTimes(tuple(one for one in stored.results if one[0] != run), ())
            fits[run.run_id] = fitted(others, [one for one in newest if one.run != run])
        found.append(compare_row(run, result, step_s, fits[run.run_id]))
    return found


def totals(rows: Sequence[Compared]) -> list[Compared]:
    """Return the sum of the rows of each run with enough rows."""
    found = []
    for run in dict.fromkeys(row.run for row in rows):
        own = [row for row in rows if row.run == run]
        if len(own) >= MIN_ROWS:
            sums = sum(row.predicted_s for row in own), sum(row.measured_s for row in own)
            found.append(Compared(run, f"{len(own)} rows", *sums))
    return found


def remaining_of_rows(rows: Sequence[Compared]) -> list[Compared]:
    """Return the remaining time of each run, one row at a time, after ENDED_SHARE of its rows."""
    found = []
    for total in totals(rows):
        own = sorted((row for row in rows if row.run == total.run), key=lambda row: began_s(row.result))
        remaining = RemainingTime({row.row: ExpectedTime(row.predicted_s, 0.0) for row in own})
        ended = ceil(ENDED_SHARE * len(own))
        for row in own[:ended]:
            remaining.add_ended(row.row, row.result.elapsed_s, row.result)
        left_s = remaining.estimate_s([], [row.result.spec for row in own[ended:]], lambda spec: 1, 1)
        words = f"{len(own) - ended} rows after {ended}"
        found.append(Compared(total.run, words, left_s, sum(row.measured_s for row in own[ended:])))
    return found


def remaining_of_run(
    run: FinishedRun, expected: Mapping[str, ExpectedTime], rows: Sequence[Result]
) -> tuple[float | None, float]:
    """Return the estimated and the true remaining time of ``rows`` of a run after ENDED_SHARE of them, s.

    Running rows report that they train, but no estimate of their own.
    """
    ended = sorted(rows, key=ended_s)[: ceil(ENDED_SHARE * len(rows))]
    now_s = ended_s(ended[-1])
    remaining = RemainingTime(expected)
    for row in ended:
        remaining.add_ended(row.spec.row, row.elapsed_s, row)
    others = [row for row in rows if row not in ended]
    running = [state_of(row, now_s - began_s(row)) for row in others if began_s(row) < now_s]
    waiting = [row.spec for row in others if began_s(row) >= now_s]
    left_s = remaining.estimate_s(running, waiting, lambda spec: spec.settings.gpus, run.gpus)
    return left_s, run.started_s + run.seconds - now_s


def state_of(row: Result, elapsed_s: float) -> RowState:
    """Return the state of a row ``elapsed_s`` after its start."""
    started = Progress(phase="forward", step=0, micro_steps=0, planned_micro_steps=0)
    return RowState(row.spec, elapsed_s, started if elapsed_s > row.times.start_s else None)


def rows_seconds(times: Sequence[RowTime], gpus: int) -> TimeRange:
    """Return the time of rows that share GPUs, without what occurs once in a run."""
    sides, needed = zip(*(time[:3] for time in times), strict=True), [time.gpus for time in times]
    return TimeRange(*(makespan_s(list(zip(side, needed, strict=True)), gpus) for side in sides))


def compare_whole(run: FinishedRun, way: str, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predicted and the measured time of a run, and its remaining time after a part of its rows.

    Of a run that was interrupted, only the rows that have ended count.
    """
    ended = [row.spec.row for row in run.rows]
    times = {row: RowTime(**one) for row, one in predicted["rows"].items() if one}
    planned_s = rows_seconds(list(times.values()), run.gpus)
    done_s = rows_seconds([time for row, time in times.items() if row in ended], run.gpus)
    sides = zip(TimeRange._fields, planned_s, done_s, strict=True)
    whole = TimeRange(*(predicted[side] - planned + done for side, planned, done in sides))
    rows = {row: ExpectedTime(time.expected_s, time.start_s) for row, time in times.items()}
    left_s, true_s = remaining_of_run(run, rows, run.rows)
    return {
        "run": run.run.run_id,
        "rows": f"{len(ended)} of {len(predicted['rows'])}",
        "way": way,
        **whole._asdict(),
        "measured_s": run.seconds,
        "error": relative_error(whole.expected_s, run.seconds),
        "remaining_s": left_s,
        "remaining_error": None if left_s is None else relative_error(left_s, true_s),
    }


def compare_all_whole(runs: Sequence[FinishedRun]) -> Iterator[dict[str, Any]]:
    """Yield the comparison of each run, in each of WAYS."""
    predicted = json.loads(PREDICTED_FILE.read_text())["runs"]
    for run in runs:
        for way in WAYS:
            yield compare_whole(run, way, predicted[run.run.run_id][way])


def whole_cells(one: Mapping[str, Any]) -> list[str]:
    """Return the table cells of a whole run."""
    interval = f"{one['low_s']:.0f} to {one['high_s']:.0f}"
    times = f"{one['expected_s']:.0f}", interval, f"{one['measured_s']:.0f}", percent(one["error"])
    return [one["run"], one["rows"], WAYS[one["way"]], *times, percent(one["remaining_error"])]


def errors_of(errors: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(map(abs, errors)), "number": len(errors)} | summary(errors)


def words_of(name: str, errors: Mapping[str, float]) -> str:
    return f"{name}: mean error {errors['mean']:.1%}, worst {errors['worst']:.1%} of {errors['number']}."


def main() -> None:
    """Compare all rows and runs, and write the tables."""
    newest = finished_runs()
    rows = compare_stored(StoredTimes.read(EVIDENCE / "none"), newest)
    runs, remaining, whole = totals(rows), remaining_of_rows(rows), list(compare_all_whole(newest))
    errors = {
        "Sums of rows": errors_of([one.error for one in runs]),
        "Remaining time after a quarter of the rows": errors_of([one.error for one in remaining]),
        "Rows": errors_of([one.error for one in rows]),
    }
    for way, words in WAYS.items():
        if found := [one for one in whole if one["way"] == way]:
            errors[f"Whole runs, {words}"] = errors_of([one["error"] for one in found])
            left = [one["remaining_error"] for one in found if one["remaining_error"] is not None]
            errors[f"Remaining time of whole runs, {words}"] = errors_of(left)
    tables = [markdown(RUN_HEAD, list(map(whole_cells, whole)))] if whole else []
    tables += [markdown(HEAD, [one.cells for one in part]) for part in (runs, remaining, rows)]
    text = "\n".join([*tables, *(f"{words_of(name, one)}\n" for name, one in errors.items())])
    parts = {"runs": runs, "remaining": remaining, "rows": rows}
    data = {"whole": whole, "errors": errors} | {name: [one.data for one in part] for name, part in parts.items()}
    write(EVIDENCE, "wall_times", text, data)


if __name__ == "__main__":
    main()
