"""Processes that are found and ended by a variable that they inherited."""

import os
import subprocess
import sys
import time

import pytest

from experiments.system import processes as families
from experiments.system.processes import kill_tagged, tagged_processes

SPAWN = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True); input()"


@pytest.fixture
def two():
    """Two processes of a family, one of them in a session of its own, and one that is none of it."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    other = subprocess.Popen(["sleep", "600"])
    own = subprocess.Popen(
        [sys.executable, "-c", SPAWN], env=os.environ | {"TESTBED_TEST": mark}, stdin=subprocess.PIPE
    )
    until = time.monotonic() + 20
    while len(tagged_processes("TESTBED_TEST", mark)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    yield mark
    kill_tagged("TESTBED_TEST", mark, 5)
    assert other.poll() is None
    other.kill()
    other.wait()
    own.wait()


def test_a_family_is_found_by_its_mark_and_ended_as_one(two):
    assert len(tagged_processes("TESTBED_TEST", two)) == 2
    assert len(tagged_processes("TESTBED_TEST")) >= 2
    assert tagged_processes("TESTBED_TEST", "another") == []
    assert kill_tagged("TESTBED_TEST", two, 20) == []
    assert tagged_processes("TESTBED_TEST", two) == []


def test_those_that_do_not_go_are_named(two, monkeypatch):
    monkeypatch.setattr(families.psutil.Process, "kill", lambda process: None)
    left = kill_tagged("TESTBED_TEST", two, 0.1)
    monkeypatch.undo()
    assert sorted(left) == sorted(process.pid for process in tagged_processes("TESTBED_TEST", two))
