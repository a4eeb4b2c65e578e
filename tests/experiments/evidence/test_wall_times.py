"""The time of rows outside of their steps is fitted to stored runs, and compared with runs that are left out."""

import json
from pathlib import Path

import pytest

from experiments.history.durations import StoredTimes
from experiments.history.outside_steps import OutsideSteps
from experiments.results.schema import StageTimes, StageTimestamps
from tests.benchmarks.prediction.tables import EVIDENCE
from tests.benchmarks.wall_times import runs as wall_runs
from tests.benchmarks.wall_times.compare import totals
from tests.benchmarks.wall_times.outside_steps import TimedStage, fit, fitted, weighted_median
from tests.support.results import in_memory


def test_a_single_slow_row_does_not_change_the_fitted_seconds():
    rows = [("a", 2.0, 2.0), ("b", 3.0, 2.5), ("c", 5.0, 3.5), ("d", 1.0, 1.5), ("slow", 2.0, 90.0)]
    stages = [TimedStage("run", row, {"model": 1.0, "parameters": count}, seconds) for row, count, seconds in rows]
    assert fit(stages) == pytest.approx({"model": 1.0, "parameters": 0.5}, abs=0.01)


def test_a_value_with_a_large_weight_is_the_weighted_median():
    assert weighted_median([3.0, 1.0, 2.0], [1.0, 1.0, 1.0]) == 2.0
    assert weighted_median([3.0, 1.0, 2.0], [5.0, 1.0, 1.0]) == 3.0
    assert weighted_median([1.0, 2.0], [1.0, 1.0]) == 1.5


def test_fitting_the_stored_runs_again_gives_the_stored_seconds():
    assert fitted(StoredTimes.read(Path("none")), wall_runs.finished_runs()) == OutsideSteps.read()


def test_the_stored_predictions_of_whole_runs_have_the_commands_and_rows_of_these_runs():
    predicted = json.loads((EVIDENCE / "wall_predicted.json").read_text())["runs"]
    assert {name: list(one["measured_steps"]["rows"]) for name, one in predicted.items()} == {
        run.name: [spec.row for spec in run.specs()] for run in wall_runs.RUNS
    }
    for run in wall_runs.RUNS:
        assert predicted[run.name]["command"] == f"testbed {' '.join(run.command(Path('results')))}"


def row(name, began_s, elapsed_s, start_s=1.0):
    times = StageTimes(start_s=start_s, build_s=1.0, train_s=elapsed_s - start_s - 2.0, end_s=1.0)
    stamps = StageTimestamps(started_at=began_s + start_s, began_at=began_s + start_s, ended_at=began_s + elapsed_s)
    return in_memory.result(name).model_copy(update={"times": times, "timestamps": stamps, "elapsed_s": elapsed_s})


def test_a_run_lasts_until_its_last_row_has_ended_and_the_pauses_between_rows_are_measured():
    started = "1970-01-01T00:01:30+00:00"
    made = in_memory.run("a").model_copy(update={"started_at": started, "host": "8 cores, 2 x NVIDIA H200"})
    rows = [row("a", 100.0, 30.0), row("b", 101.0, 20.0), row("c", 122.0, 20.0), row("d", 130.5, 1.0)]
    finished = wall_runs.FinishedRun(made, rows)
    assert (finished.seconds, finished.gpus, finished.between_rows_s) == (52.0, 2, [1.0, 0.5])


def test_without_a_run_of_enough_rows_no_whole_runs_are_compared():
    assert totals([]) == []
