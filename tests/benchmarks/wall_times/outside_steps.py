"""Fit the seconds of rows outside of their steady steps to stored runs.

    python -m tests.benchmarks.wall_times.outside_steps

Reads the stored runs at full size whose rows report their stages, and runs of newer code: row_stages.json and
wall_runs.jsonl. Writes experiments/history/outside_steps.json, which names the runs. The seconds of a row's parts have
the smallest sum of absolute errors over all stages of all rows, so that single rows of a slow host hardly change them.
Seconds that a run needs once, or between its rows, are medians over the runs of newer code, because older code needed
longer. The error is the one that 80 % of the rows do not exceed, each with seconds that were fitted to the other runs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any, NamedTuple

from experiments.history.durations import StoredTimes
from experiments.history.outside_steps import FILE, OutsideSteps, PartCounts, Stage, StepKind, row_parts, step_kind
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.suites.suite import suite_named
from experiments.system.files import write_atomically
from experiments.training.measure.schedule import schedule_of
from tests.benchmarks.prediction.tables import EVIDENCE, relative_error
from tests.benchmarks.wall_times.runs import FinishedRun, began_s, finished_runs

ROUNDS = 50
"""Rounds of a fit. In the stored runs, no part changes by a millisecond after 20 rounds."""
STAGES_FILE = EVIDENCE.parent / "row_stages.json"
JOBS_FILE = EVIDENCE.parent / "overhead.json"
MEASURED_STAGES: tuple[Stage, ...] = ("start", "build", "end")


class TimedStage(NamedTuple):
    """A stage of a row: its parts, and how long it took, s."""

    run: str
    row: str
    parts: PartCounts
    seconds: float


class Edges(NamedTuple):
    """The seconds that a run needs once, and those that it needs between rows."""

    prepare_s: float
    libraries_s: float
    between_rows_s: float


def seconds_of(stage: PartCounts, parts: Mapping[str, float]) -> float:
    """Return the seconds of a stage. parts: seconds of each part; 0 for others."""
    return sum(parts.get(part, 0.0) * count for part, count in stage.items())


def timed_stages(run: Run, result: Result) -> Iterator[TimedStage]:
    """Yield the stages of a row in which nothing else than the parts takes time."""
    settings, times = result.spec.settings, result.times
    if run.size != "full" or result.outcome not in ("fits", "oom") or times is None:
        return
    seconds: dict[Stage, float] = {"start": times.start_s}
    if settings.task != "generate":
        seconds |= {"build": times.build_s, "end": times.end_s}
    if result.speed and result.outcome == "fits":
        steps_s = result.speed.optimizer_steps * result.speed.step_s
        seconds["first steps"] = max(0.0, times.train_s - steps_s)
    parts = row_parts(settings, result.parameters or 0, result.spec.card)
    for stage, one in seconds.items():
        yield TimedStage(run.run_id, result.spec.row, parts[stage], one)


def stages_of_file(record: dict[str, Any], stored: StoredTimes) -> Iterator[TimedStage]:
    """Yield the stages in row_stages.json. The models have as many parameters as in stored runs of the same rows."""
    words = record["command"].split()
    name, card = words[2], words[words.index("--card") + 1]
    suite = suite_named(name)
    parameters = {
        result.spec.row: result.parameters or 0
        for run, result in stored.results
        if (run.suite, result.spec.card) == (name, card)
    }
    for row, times in record["rows"].items():
        parts = row_parts(suite.settings(suite.row(row), card), parameters[row], card)
        for stage in MEASURED_STAGES:
            yield TimedStage(STAGES_FILE.stem, row, parts[stage], times[f"{stage}_s"])


def fit(stages: Sequence[TimedStage]) -> dict[str, float]:
    """Return the seconds of each part with the smallest sum of absolute errors, none below 0.

    One part after the other gets its best value while all others stay as they are.
    """
    found = {part: 0.0 for stage in stages for part in stage.parts}
    stages_with = {part: [stage for stage in stages if part in stage.parts] for part in found}
    for _ in range(ROUNDS):
        for part, own in stages_with.items():
            rest = [
                stage.seconds - sum(found[one] * count for one, count in stage.parts.items() if one != part)
                for stage in own
            ]
            counts = [stage.parts[part] for stage in own]
            found[part] = max(0.0, weighted_median([one / n for one, n in zip(rest, counts, strict=True)], counts))
    return dict(sorted(found.items()))


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the value at which half of the weight is reached; the mean of two values if it is reached between them."""
    ordered, half, reached = sorted(zip(values, weights, strict=True)), sum(weights) / 2, 0.0
    for (value, weight), (following, _) in pairwise([*ordered, ordered[-1]]):
        reached += weight
        if reached >= half:
            return value if reached > half else (value + following) / 2
    raise ValueError("no values")


def row_errors(stages: Sequence[TimedStage]) -> Iterator[float]:
    """Yield the error of each row's time outside of steps, with seconds that were fitted to the other runs.

    Rows with a part that no other run has are left out.
    """
    for run in dict.fromkeys(stage.run for stage in stages):
        parts = fit([stage for stage in stages if stage.run != run])
        own = [stage for stage in stages if stage.run == run]
        for row in dict.fromkeys(stage.row for stage in own):
            timed = [stage for stage in own if stage.row == row]
            if all(part in parts for stage in timed for part in stage.parts):
                predicted_s = sum(seconds_of(stage.parts, parts) for stage in timed)
                yield relative_error(predicted_s, sum(stage.seconds for stage in timed))


def longer_shares(stored: StoredTimes) -> Iterator[tuple[StepKind, float]]:
    """Yield where each row of length verdict ended between its lowest (0) and its highest (1) number of steps."""
    for run, result in stored.results:
        if (run.size, run.length, result.outcome) != ("full", "verdict", "fits") or result.speed is None:
            continue
        speed, accumulate = result.speed, result.spec.settings.accumulate
        schedule = schedule_of(run.length, speed.planned_micro_steps, accumulate)
        if schedule.maximum > schedule.minimum:
            position = (speed.micro_steps - schedule.minimum) / (schedule.maximum - schedule.minimum)
            yield step_kind(result.spec.settings), min(1.0, position)


def edges_of_file(record: dict[str, Any], parts: Mapping[str, float], stages: Sequence[TimedStage]) -> Edges:
    """Return the edges of the run in row_stages.json. stages: of its rows, in the order in which they began."""
    rows = record["rows"].values()
    rows_s = sum(sum(times.values()) for times in rows)
    first = next(iter(rows))
    return Edges(
        record["seconds"] - rows_s - (len(rows) - 1) * record["between_rows_s"],
        first["start_s"] - seconds_of(stages[0].parts, parts),
        record["between_rows_s"],
    )


def edges_of(finished: FinishedRun, parts: Mapping[str, float]) -> Edges:
    """Return the edges of a run of RECORDED_FILE."""
    first = finished.rows[0]
    start = row_parts(first.spec.settings, first.parameters or 0, first.spec.card)["start"]
    return Edges(
        began_s(first) - finished.started_s,
        first.times.start_s - seconds_of(start, parts) if first.times else 0.0,
        median(finished.between_rows_s),
    )


def fitted(stored: StoredTimes, newest: Sequence[FinishedRun]) -> OutsideSteps:
    """Return the seconds that were fitted to ``stored`` and ``newest`` runs, and to row_stages.json."""
    record = json.loads(STAGES_FILE.read_text())
    of_file = list(stages_of_file(record, stored))
    stages = [stage for run, result in stored.results for stage in timed_stages(run, result)]
    stages += [stage for one in newest for row in one.rows for stage in timed_stages(one.run, row)] + of_file
    parts, errors, shares = fit(stages), list(row_errors(stages)), list(longer_shares(stored))
    edges = [edges_of_file(record, parts, of_file), *(edges_of(one, parts) for one in newest)]
    return OutsideSteps(
        prepare_s=median(one.prepare_s for one in edges),
        libraries_s=median(one.libraries_s for one in edges),
        between_rows_s=median(one.between_rows_s for one in edges),
        job_s=json.loads(JOBS_FILE.read_text())["added_to_a_row_on_a_leased_node_s"],
        parts=parts,
        longer_share={kind: fmean(share for own, share in shares if own == kind) for kind in dict(shares)},
        error_share=quantiles(map(abs, errors), n=5)[-1],
        runs=tuple(dict.fromkeys(stage.run for stage in stages)),
    )


def main() -> None:
    """Fit the seconds and write them."""
    text = fitted(StoredTimes.read(Path("none")), finished_runs()).model_dump_json(indent=1)
    write_atomically(FILE, f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
