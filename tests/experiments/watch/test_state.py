"""The state of a run, read from its folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.system.lock import lock_folder
from experiments.watch import state
from experiments.watch.state import RunWatcher
from tests.experiments.watch.conftest import RUNNING, STARTING, WAITING
from tests.support.results.handwritten import telemetry_csv, tiny_run


def rows_of(now):
    return {row.row: row for row in now.rows}


def test_the_state_of_each_row_follows_from_its_files(folder):
    now = RunWatcher(folder.path).read()
    rows = rows_of(now)
    assert rows["baseline"].state == "out of GPU memory"
    assert rows["reduced-batch"].state == "fits"
    assert (rows[RUNNING].state, rows[RUNNING].progress.micro_steps, rows[RUNNING].is_running) == ("backward", 3, True)
    assert (rows[STARTING].state, rows[STARTING].is_running) == ("starting", True)
    assert (rows[WAITING].state, rows[WAITING].is_running, rows[WAITING].elapsed_s) == ("waiting", False, None)
    assert now.rows_done == len(now.rows) - 4  # the three, and the row that h200_run leaves without a result
    assert rows[WAITING].predicted.startswith("out of GPU memory: needs")


def test_verdicts_are_evaluated_again_only_after_a_new_result(folder, monkeypatch):
    evaluations = []
    monkeypatch.setattr(state, "evaluate_run", lambda *given: evaluations.append(given) or evaluate_run(*given))
    watcher = RunWatcher(folder.path)
    before = {one.id: one for one in watcher.read().verdicts}
    watcher.read()
    assert len(evaluations) == 1
    (folder.row_folder_named("reduced-batch") / "result.json").unlink()
    after = {one.id: one for one in watcher.read().verdicts}
    assert len(evaluations) == 2
    assert before["reduced-batch/outcome"].grade == "emulated"
    assert after["reduced-batch/outcome"].grade == "predicted"


def test_a_run_is_active_while_a_command_has_its_lock(folder):
    watcher = RunWatcher(folder.path)
    with lock_folder(folder.path):
        assert watcher.read().active
    assert not watcher.read().active


def test_watching_a_folder_does_not_keep_a_run_from_starting_in_it(folder):
    watcher = RunWatcher(folder.path)
    watcher.read()
    with lock_folder(folder.path):
        watcher.read()
    with lock_folder(folder.path):
        pass


def test_gpu_hours_are_those_of_finished_and_running_rows(folder, tmp_path):
    now = RunWatcher(folder.path).read()
    expected_s = sum(row.elapsed_s for row in now.rows if row.result or row.row == RUNNING)
    assert now.gpu_hours == pytest.approx(expected_s / 3600)
    assert RunWatcher(tiny_run(tmp_path / "tiny").path).read().gpu_hours == 0
    assert replace(now, run=now.run.model_copy(update={"share_gpus": True})).gpu_hours == 0, "their times overlap"


def test_a_finished_miniature_is_not_shown_as_fitting(tmp_path):
    assert {row.state for row in RunWatcher(tiny_run(tmp_path / "tiny").path).read().rows} == {"ran (miniature)"}


def test_the_shown_load_is_that_of_the_gpu_or_without_one_that_of_the_host(folder):
    watcher = RunWatcher(folder.path)
    lines = {line.name: line for line in watcher.load_over_time(RUNNING)}
    assert lines["GPU memory"].values[-1] == 76.0
    assert len(lines["GPU utilization"].values) == 60
    assert watcher.load_over_time(WAITING) == ()
    (folder.row_folder_named(RUNNING) / "telemetry.csv").write_text(telemetry_csv(0))
    assert [line.name for line in watcher.load_over_time(RUNNING)] == [
        "CPU utilization",
        "memory of the row's processes",
    ]


def test_the_log_of_a_row_cannot_control_the_terminal(folder):
    watcher = RunWatcher(folder.path)
    assert list(watcher.end_of_row_log(RUNNING)) == ["step 1", "step 2"]
    assert list(watcher.end_of_row_log(WAITING)) == []


def test_a_folder_without_a_run_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^nosuch: not a run's folder"):
        RunWatcher(Path("nosuch"))


def test_a_row_with_a_start_in_the_future_has_an_elapsed_time_of_zero(folder, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert rows_of(RunWatcher(folder.path).read())[STARTING].elapsed_s == 0.0
