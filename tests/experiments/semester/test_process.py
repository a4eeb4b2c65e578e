"""The process of a part of the check ends with the check: it gets a signal, and then releases its lease."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from experiments.semester.process import StallDetector, last_line, run_logged
from experiments.system.files import CODE_FOLDER
from tests.support.processes.waiting import wait_for

PART = 'trap "echo released; exit 0" TERM; echo started; while :; do sleep 0.05; done'
CHECK = f"""
import sys
from pathlib import Path
from experiments.semester.process import run_logged
run_logged(["sh", "-c", {PART!r}], Path(sys.argv[1]), {{"PATH": "/usr/bin:/bin"}}, lambda: None)
"""


def test_an_interrupted_check_waits_until_its_running_part_has_released_the_lease(tmp_path):
    log = tmp_path / "log.txt"

    def interrupt_once_started() -> None:
        if "started" in log.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_logged(["sh", "-c", PART], log, os.environ, interrupt_once_started, poll_s=0.05)
    assert log.read_text().splitlines() == ["started", "released"]


def test_a_part_of_the_check_that_does_not_end_is_killed(tmp_path):
    log = tmp_path / "log.txt"
    stubborn = 'trap "" TERM; echo started $$; while :; do sleep 0.05; done'

    def interrupt_once_started() -> None:
        if "started" in log.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_logged(["sh", "-c", stubborn], log, os.environ, interrupt_once_started, 0.2, 0.05)
    wait_for(lambda: not psutil.pid_exists(int(log.read_text().split()[1])))


def test_the_processes_of_a_killed_check_end_with_it(tmp_path):
    log = tmp_path / "log.txt"
    environment = {**os.environ, "PYTHONPATH": str(CODE_FOLDER)}
    check = subprocess.Popen([sys.executable, "-c", CHECK, str(log)], env=environment)
    wait_for(lambda: log.is_file() and "started" in log.read_text())
    check.send_signal(signal.SIGKILL)
    check.wait()
    wait_for(lambda: "released" in log.read_text())


def test_a_part_of_the_check_has_no_terminal_and_its_exit_code_is_returned(tmp_path):
    code = run_logged(["sh", "-c", "cat; echo done; exit 3"], tmp_path / "log.txt", os.environ, lambda: None)
    assert (code, (tmp_path / "log.txt").read_text()) == (3, "done\n")


def test_a_part_of_the_check_that_stalls_is_reported_once_until_it_progresses():
    stalls = StallDetector(10)
    assert [stalls.is_new_stall(0, now) for now in (9, 10, 11)] == [False, True, False]
    assert [stalls.is_new_stall(last, 30) for last in (25, 20)] == [False, True]


def test_the_last_line_of_a_log_is_the_last_one_with_a_letter(tmp_path):
    (tmp_path / "log.txt").write_text("a reason\n\n---\n")
    assert last_line(tmp_path / "log.txt") == "a reason"
