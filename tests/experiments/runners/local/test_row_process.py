"""Runs that are interrupted: by SIGKILL, by Ctrl-C; and two runners on one folder."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from experiments.errors import InputError
from experiments.results.schema import RESULT_FILE, read_result
from experiments.runners.local import row_process
from experiments.system.files import CODE_FOLDER
from experiments.system.lock import lock_folder
from tests.support.processes.waiting import enable_interrupts, wait_for
from tests.support.runners import fake_testbed

ROWS = ("baseline", "reduced-batch")
RUN_ID = "cut-off"


class TwoRowRun:
    """`testbed run` of two rows in another process: baseline ends at once; reduced-batch hangs if ``hang`` is set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = path / "results" / RUN_ID / "single_gpu_blip2"

    def start(self, hang: bool) -> subprocess.Popen[str]:
        rows = [part for row in ROWS for part in ("--row", row)]
        arguments = ["run", "single_gpu_blip2", *rows, "--run-id", RUN_ID, "--results", str(self.path / "results")]
        return subprocess.Popen(
            [sys.executable, "-m", fake_testbed.__name__, *arguments],
            env={
                **os.environ,
                "FAKE": "reduced-batch=hang" if hang else "",
                "FAKE_JOURNAL": str(self.path / "journal"),
                "CUDA_VISIBLE_DEVICES": "",
            },
            cwd=CODE_FOLDER,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=enable_interrupts,
        )

    def start_count(self, row: str) -> int:
        journal = self.path / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return sum(line.startswith(f"{row} ") and len(line.split()) == 3 for line in lines)

    def wait_for_second_row(self) -> None:
        """Wait until the first row has finished and the second one runs."""
        wait_for(lambda: (self.rows / "baseline" / RESULT_FILE).exists() and self.start_count("reduced-batch"))

    def running_processes(self) -> list[psutil.Process]:
        return [one for row in ROWS for one in row_process.tagged_processes(self.rows / row)]


@pytest.fixture
def two_row_run(tmp_path):
    made = TwoRowRun(tmp_path)
    yield made
    for one in made.running_processes():
        with suppress(psutil.Error):
            one.kill()


def test_a_killed_run_leaves_no_process_and_is_resumed(two_row_run):
    first = two_row_run.start(hang=True)
    two_row_run.wait_for_second_row()
    assert two_row_run.running_processes()
    first.kill()
    first.wait()
    wait_for(lambda: not two_row_run.running_processes(), within_s=15)
    assert not (two_row_run.rows / "reduced-batch" / RESULT_FILE).exists()

    output = two_row_run.start(hang=False).communicate()[0]
    assert "baseline: result kept (finished: fits)" in output
    assert "reduced-batch: starts (the last run was interrupted)" in output
    assert (two_row_run.start_count("baseline"), two_row_run.start_count("reduced-batch")) == (1, 2)
    assert (two_row_run.rows / "reduced-batch" / RESULT_FILE).exists()
    assert two_row_run.running_processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_finished_rows_and_kills_running_ones(two_row_run, number):
    running = two_row_run.start(hang=True)
    two_row_run.wait_for_second_row()
    running.send_signal(number)
    output = running.communicate(timeout=60)[0]
    assert running.returncode == 130
    assert "interrupted" in output
    assert "Traceback" not in output
    assert two_row_run.running_processes() == []
    assert (two_row_run.rows / "baseline" / RESULT_FILE).exists()
    assert not (two_row_run.rows / "reduced-batch" / RESULT_FILE).exists()


def test_stopped_processes_of_a_row_are_killed_too(two_row_run):
    running = two_row_run.start(hang=True)
    two_row_run.wait_for_second_row()
    for process in two_row_run.running_processes():
        with suppress(psutil.NoSuchProcess):  # a helper of a process may have ended meanwhile
            process.suspend()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert two_row_run.running_processes() == []


def test_a_row_whose_processes_were_killed_is_an_error_and_the_run_ends(two_row_run):
    running = two_row_run.start(hang=True)
    two_row_run.wait_for_second_row()
    for process in two_row_run.running_processes():
        with suppress(psutil.Error):
            process.kill()
    output = running.communicate(timeout=60)[0]
    assert running.returncode == 3
    assert "Traceback" not in output
    assert read_result(two_row_run.rows / "reduced-batch" / RESULT_FILE).outcome == "error"
    assert two_row_run.running_processes() == []


def test_a_second_runner_is_rejected_unless_the_first_is_dead(tmp_path):
    folder = tmp_path / "results" / "run"
    with lock_folder(folder), pytest.raises(InputError, match=f"in use by process {os.getpid()}"), lock_folder(folder):
        pass
    with lock_folder(folder):
        pass


def test_a_results_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"), lock_folder(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(("set_by_user", "value"), [(None, "1"), ("0", "0")])
def test_rows_use_huge_pages_unless_the_user_sets_the_variable(set_by_user, value, monkeypatch):
    monkeypatch.delenv(row_process.HUGE_PAGES_VARIABLE, raising=False)
    if set_by_user:
        monkeypatch.setenv(row_process.HUGE_PAGES_VARIABLE, set_by_user)
    assert row_process.environment_of_child_processes()[row_process.HUGE_PAGES_VARIABLE] == value
