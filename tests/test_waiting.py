"""The tests wait for a service as long as its process runs, up to a time limit."""

import subprocess

import pytest

from tests.support.processes.waiting import wait_until_up


@pytest.fixture
def service(tmp_path):
    """Start a shell command as a service; its output is the log."""
    started = []

    def start(command):
        with (tmp_path / "log").open("w") as log:
            started.append(subprocess.Popen(["sh", "-c", command], stdout=log, stderr=log))
        return started[0]

    yield start
    started[0].kill()
    started[0].wait()


def test_a_service_that_ends_unexpectedly_is_named_at_once_with_its_log(service, tmp_path):
    process = service("echo no such database; exit 3")
    with pytest.raises(RuntimeError, match="keystone ended with exit code 3:\nno such database"):
        wait_until_up("keystone", process, tmp_path / "log", lambda: False)


def test_the_wait_for_a_service_that_still_runs_ends_at_the_time_limit(service, tmp_path):
    asked = []
    process = service("echo slowly; sleep 60")
    wait_until_up("keystone", process, tmp_path / "log", lambda: asked.append(1) or len(asked) > 3)
    with pytest.raises(RuntimeError, match="keystone does not answer after 0 s:\n"):
        wait_until_up("keystone", process, tmp_path / "log", lambda: False, limit_s=0)
