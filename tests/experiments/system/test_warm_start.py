"""Processes that are forked from the warm process have the same properties as new ones, and end like those."""

import gc
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from experiments.system import warm_start
from experiments.system.environment import PADDING_BYTES
from experiments.system.processes import find_tagged, kill_tagged
from experiments.system.warm_process import import_modules
from tests.support.processes.running import is_running
from tests.support.processes.waiting import wait_for
from tests.support.processes.warm_processes import CHILD, warm_process

TAG = "TESTBED_TEST"


@pytest.fixture
def warm_server(tmp_path):
    with warm_process(tmp_path, "json", "no.such.module") as (process, environment):
        yield process, environment | {TAG: str(tmp_path)}


@pytest.fixture
def start_child(warm_server, tmp_path, monkeypatch):
    """Start the child process in a new folder: from the warm process, or with a new interpreter."""
    monkeypatch.chdir(tmp_path)

    def start(*action, environment=None, cold=False):
        variables = {**(environment or warm_server[1]), "ONLY_HERE": "yes"}
        if cold:
            del variables[warm_start.RANK_SOCKET_VARIABLE]
        with (tmp_path / "output.txt").open("wb") as output:
            command = [CHILD, "child.json", *action]
            return warm_start.start_process(warm_start.RANK_SOCKET_VARIABLE, command, variables, output.fileno())

    return start


def child_report(tmp_path):
    wait_for((tmp_path / "child.json").exists)
    return json.loads((tmp_path / "child.json").read_text())


def test_a_warm_started_process_has_the_properties_of_a_cold_started_one(warm_server, start_child, tmp_path):
    assert start_child(cold=True).wait() == 0
    cold = child_report(tmp_path)
    (tmp_path / "child.json").unlink()
    process = start_child()
    assert isinstance(process, warm_start.WarmStartedProcess)
    assert process.wait() == 0
    child = child_report(tmp_path)
    own = ("pid", "shown", "environment")
    assert {key: child[key] for key in child if key not in own} == {key: cold[key] for key in cold if key not in own}
    assert child["pid"] == process.pid
    assert child["environment"] == child["shown"] == warm_server[1] | {"ONLY_HERE": "yes"}
    assert (child["in_c"], child["session"], child["threads"], child["sockets"]) == ("yes", True, 1, 0)
    assert (tmp_path / "output.txt").read_text() == "does \n"


def test_a_warm_started_process_has_the_oom_score_of_the_process_that_requested_it(warm_server, tmp_path):
    program = (
        "import os; from experiments.system import warm_start; open('/proc/self/oom_score_adj', 'w').write('777');"
        f"process = warm_start.start_process('{warm_start.RANK_SOCKET_VARIABLE}', ['{CHILD}', 'child.json'], "
        "dict(os.environ), 1); process.wait()"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=warm_server[1], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL
    )
    assert child_report(tmp_path)["oom_score_adj"] == "777"


@pytest.mark.parametrize(("action", "code"), [("7", 7), ("abort", -signal.SIGABRT)])
def test_the_exit_code_of_a_warm_started_process_is_reported(start_child, action, code):
    process = start_child(action)
    assert process.wait() == code
    assert process.poll() == process.wait() == code


def test_a_hanging_warm_started_process_is_found_by_its_tag_and_killed(start_child, tmp_path):
    process = start_child("hang")
    pid = child_report(tmp_path)["pid"]
    assert process.poll() is None
    assert [one.pid for one in find_tagged(TAG, str(tmp_path))] == [pid]
    assert kill_tagged(TAG, str(tmp_path), 10) == []
    assert process.wait() == -signal.SIGKILL


def test_a_warm_started_process_ends_with_the_process_that_requested_it(warm_server, tmp_path):
    program = (
        f"import os, time; from experiments.system import warm_start; command = ['{CHILD}', 'child.json', 'hang'];"
        "started = warm_start.start_process(warm_start.RANK_SOCKET_VARIABLE, command, dict(os.environ), 1);"
        "time.sleep(600)"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", program], env=warm_server[1], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    pid = child_report(tmp_path)["pid"]
    asking.kill()
    asking.wait()
    wait_for(lambda: not is_running(pid))


def test_processes_end_with_their_warm_process_and_later_processes_start_cold(warm_server, start_child, tmp_path):
    process = start_child("hang")
    pid = child_report(tmp_path)["pid"]
    warm_server[0].kill()
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not is_running(pid))
    after = start_child("7")
    assert isinstance(after, subprocess.Popen)
    assert after.wait() == 7


def test_a_process_with_too_large_an_environment_starts_cold(warm_server, start_child):
    process = start_child("7", environment=warm_server[1] | {"LARGE": "x" * (PADDING_BYTES + 20_000)})
    assert isinstance(process, subprocess.Popen)
    assert process.wait() == 7


def test_ended_processes_leave_no_open_file_and_no_child_in_the_warm_process(warm_server, start_child):
    files = len(os.listdir(f"/proc/{warm_server[0].pid}/fd"))
    for _ in range(20):
        assert start_child("0").wait() == 0
    wait_for(lambda: len(os.listdir(f"/proc/{warm_server[0].pid}/fd")) == files)
    assert psutil.Process(warm_server[0].pid).children() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("cold", [False, True])
def test_the_command_that_starts_a_process_forwards_signals_to_it_and_ends_like_it(warm_server, tmp_path, number, cold):
    environment = {
        key: warm_server[1][key] for key in warm_server[1] if not cold or key != warm_start.RANK_SOCKET_VARIABLE
    }
    command = [sys.executable, "-m", warm_start.MODULE, warm_start.RANK_SOCKET_VARIABLE, CHILD, "child.json", "hang"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    pid = child_report(tmp_path)["pid"]
    assert (pid == process.pid) == cold
    process.send_signal(number)
    assert process.wait() == -number
    wait_for(lambda: not is_running(pid))


def test_the_command_that_starts_a_process_has_the_exit_code_of_the_process(warm_server, tmp_path):
    command = [sys.executable, "-m", warm_start.MODULE, warm_start.RANK_SOCKET_VARIABLE, CHILD, "child.json", "7"]
    done = subprocess.run(command, env=warm_server[1], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, "does 7\n", "")


@pytest.mark.parametrize(
    ("module", "obstacle"),
    [
        ("tests.support.processes.starts_thread", "2 threads"),
        ("tests.support.processes.opens_gpu", "CUDA is initialized"),
    ],
)
def test_a_module_that_makes_forks_unsafe_ends_the_warm_process(tmp_path, module, obstacle):
    with warm_process(tmp_path, module) as (process, environment):
        assert process.wait() == 1
        assert not warm_start.is_ready(environment, warm_start.RANK_SOCKET_VARIABLE)
    assert (tmp_path / "warm.txt").read_text().startswith(f"rows cannot start from this process: {obstacle}")


def test_no_garbage_is_collected_during_imports_even_if_one_fails(tmp_path, monkeypatch, capfd):
    collects = "import gc\ncollects = gc.isenabled()\n"
    (tmp_path / "imported_once.py").write_text(collects)
    (tmp_path / "fails_once.py").write_text(collects + "raise ValueError(collects)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_modules(["fails_once", "imported_once"])
    assert not sys.modules.pop("imported_once").collects
    assert "ValueError: False" in capfd.readouterr().err
    assert gc.isenabled()
