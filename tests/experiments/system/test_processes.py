"""Tagged processes are found and killed by a variable that they inherited."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from experiments.system.processes import find_tagged, kill_tagged, tag_of

SPAWN = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True); input()"


@pytest.fixture
def tagged_processes_and_another():
    """Start two tagged processes, one of them in a separate session, and a process without the tag."""
    tag = f"{os.getpid()}-{time.monotonic_ns()}"
    other = subprocess.Popen(["sleep", "600"])
    own = subprocess.Popen([sys.executable, "-c", SPAWN], env=os.environ | {"TESTBED_TEST": tag}, stdin=subprocess.PIPE)
    until = time.monotonic() + 20
    while len(find_tagged("TESTBED_TEST", tag)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    yield tag
    kill_tagged("TESTBED_TEST", tag, 5)
    assert other.poll() is None
    other.kill()
    other.wait()
    own.wait()


def test_tagged_processes_are_found_and_killed_together(tagged_processes_and_another):
    tagged = find_tagged("TESTBED_TEST", tagged_processes_and_another)
    assert [tag_of(process.pid, "TESTBED_TEST") for process in tagged] == [tagged_processes_and_another] * 2
    assert tag_of(os.getpid(), "TESTBED_TEST") == tag_of(2**22, "TESTBED_TEST") == ""
    assert len(find_tagged("TESTBED_TEST")) >= 2
    assert find_tagged("TESTBED_TEST", "another") == []
    assert kill_tagged("TESTBED_TEST", tagged_processes_and_another, 20) == []
    assert find_tagged("TESTBED_TEST", tagged_processes_and_another) == []


def test_processes_that_survive_being_killed_are_named(tagged_processes_and_another, monkeypatch):
    monkeypatch.setattr(psutil.Process, "kill", lambda process: None)
    left = kill_tagged("TESTBED_TEST", tagged_processes_and_another, 0.1)
    monkeypatch.undo()
    assert sorted(left) == sorted(process.pid for process in find_tagged("TESTBED_TEST", tagged_processes_and_another))
