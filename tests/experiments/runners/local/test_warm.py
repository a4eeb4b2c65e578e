"""Rows that start from the warm process of their run, and rows whose warm process is missing or ends."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
from jupyter_client.connect import port_names
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from nbformat.validator import validators

from experiments.results.schema import NOTEBOOK_FILE
from experiments.runners.local import row_process, warm, warm_kernel
from experiments.runners.local.runner import LocalRunner
from experiments.runners.local.warm import (
    COLD_START_VARIABLE,
    WORKER_MODULE,
    WarmProcess,
    modules_to_import,
    warm_processes,
)
from experiments.runners.local.warm_kernel import NoDelayKernelClient, WarmKernelManager
from experiments.system.environment import pad_environment
from experiments.system.files import CODE_FOLDER
from experiments.system.processes import find_tagged
from experiments.system.warm_process import READY_SUFFIX
from experiments.system.warm_start import MODULE, RANK_SOCKET_VARIABLE, ROW_SOCKET_VARIABLE
from tests.support.processes.waiting import wait_for
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_view import RecordingView
from tests.testbed.slurm.runs import call_when

pytestmark = pytest.mark.xdist_group("runner")

ENGINES = ("hf_trainer", "lightning", "litgpt", "litgpt_trainer")
OPENS_GPUS = ("bitsandbytes", "deepspeed", "peft")
TAG = "TESTBED_WARM_TEST"


class FinishedRun:
    """A run whose rows run one after another, on one core."""

    def __init__(self, path, monkeypatch, rows, behavior="") -> None:
        monkeypatch.setenv("FAKE", behavior)
        monkeypatch.setenv("FAKE_JOURNAL", str(path / "journal"))
        self.journal, self.view, self.rows = path / "journal", RecordingView(), rows
        self.folder = sample_rows.folder(path / "run", *rows)
        self.runner = LocalRunner(self.folder, sample_rows.node(cpus=1), 64.0, self.view, fake_worker.MODULE)

    def run(self) -> "FinishedRun":
        self.runner.run(sample_rows.rows_to_run(*(sample_rows.spec(row, size="tiny") for row in self.rows)))
        assert not any(row_process.tagged_processes(self.folder.row_folder_named(row)) for row in self.rows)
        return self

    def started(self, row: str) -> str:
        text = (self.folder.row_folder_named(row) / NOTEBOOK_FILE).read_text()
        return "warm" if "started warm" in text else "cold" if "started cold" in text else "nothing"

    def start_count(self, row: str) -> int:
        notes = self.journal.read_text().splitlines() if self.journal.exists() else []
        return sum(note.startswith(f"{row} ") and len(note.split()) == 3 for note in notes)

    def outcomes(self) -> dict[str, str]:
        return {row: result.outcome for row, result in self.folder.results().items()}


def test_rows_that_start_from_the_warm_process_end_like_rows_that_start_cold(tmp_path, monkeypatch):
    made = FinishedRun(tmp_path, monkeypatch, "abcde", "b=oom,c=die,d=child").run()
    assert made.outcomes() == {"a": "fits", "b": "oom", "c": "error", "d": "fits", "e": "fits"}
    assert [made.started(row) for row in "abde"] == ["warm"] * 4
    assert made.folder.results()["c"].reason == "ended without a result: last line of c"


def test_rows_start_cold_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv(COLD_START_VARIABLE, "1")
    made = FinishedRun(tmp_path, monkeypatch, "ab").run()
    assert made.outcomes() == {"a": "fits", "b": "fits"}
    assert [made.started(row) for row in "ab"] == ["cold"] * 2


def test_a_row_starts_again_cold_when_the_warm_process_dies(tmp_path, monkeypatch):
    made = FinishedRun(tmp_path, monkeypatch, "abc", "b=warm-hang")
    call_when(lambda: made.start_count("b"), lambda: made.runner._warm[0]._process.kill())
    made.run()
    assert made.outcomes() == {"a": "fits", "b": "fits", "c": "fits"}
    assert [made.start_count(row) for row in "abc"] == [1, 2, 1]
    assert [made.started(row) for row in "bc"] == ["cold"] * 2
    assert (
        sum(line.startswith("rows start more slowly from now on: a warm process has ended") for line in made.view.lines)
        == 1
    )


def test_rows_start_cold_if_the_warm_process_does_not_answer(tmp_path, monkeypatch):
    imports = {ROW_SOCKET_VARIABLE: ["tests.support.processes.starts_thread"]}
    monkeypatch.setattr(warm, "modules_to_import", lambda specs, worker: imports)
    made = FinishedRun(tmp_path, monkeypatch, "ab").run()
    assert made.outcomes() == {"a": "fits", "b": "fits"}
    assert (made.start_count("a"), made.started("b")) == (1, "cold")
    assert any("2 threads" in line for line in made.view.lines)


def test_a_stop_signal_ends_the_wait_for_a_warm_process(monkeypatch):
    imports = {ROW_SOCKET_VARIABLE: ["tests.support.processes.hangs"]}
    monkeypatch.setattr(warm, "modules_to_import", lambda specs, worker: imports)
    asked: list[None] = []
    with warm_processes([], WORKER_MODULE, lambda: asked.append(None) or len(asked) > 1) as (started,):
        assert not started.ready
        assert started.last_line_if_ended() is None


def test_if_the_runner_is_killed_the_warm_process_and_its_rows_end(tmp_path):
    program = (
        "import os, time; from experiments.runners.local.warm import WarmProcess;"
        "from experiments.system import warm_start as one;"
        f"warm = WarmProcess('{ROW_SOCKET_VARIABLE}', ['json']);"
        "environment = {**os.environ, **warm.environment};"
        "[time.sleep(0.05) for _ in iter(lambda: warm.ready, True)];"
        "command = ['tests.support.processes.warm_child', 'child.json', 'hang'];"
        "row = one.start_process(one.ROW_SOCKET_VARIABLE, command, environment, 1);"
        "time.sleep(600)"
    )
    environment = os.environ | {TAG: str(tmp_path), "PYTHONPATH": str(CODE_FOLDER)}
    runner = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=tmp_path)
    wait_for((tmp_path / "child.json").exists)
    assert len(find_tagged(TAG, str(tmp_path))) == 3
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    wait_for(lambda: not find_tagged(TAG, str(tmp_path)))


@pytest.mark.parametrize("socket", [ROW_SOCKET_VARIABLE, RANK_SOCKET_VARIABLE])
def test_imports_of_a_warm_process_start_no_thread_and_open_no_gpu(socket):
    """The process has one thread, and has not imported modules that initialize CUDA."""
    specs = [sample_rows.spec(size="tiny", engine=engine, devices=2) for engine in ENGINES]
    specs.append(sample_rows.spec(size="tiny", optimizer="deepspeed_cpu"))
    modules = modules_to_import(specs, WORKER_MODULE)[socket]
    program = (
        "import sys; from experiments.system.warm_process import find_fork_obstacles, import_modules;"
        f"import_modules({modules!r});"
        f"print(find_fork_obstacles(), [name for name in {OPENS_GPUS!r} if name in sys.modules])"
    )
    environment = pad_environment(row_process.environment_of_child_processes() | warm.SINGLE_THREAD_VARIABLES)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "[] []\n"
    assert "Traceback" not in done.stderr


def test_the_warm_process_imports_only_modules_that_the_rows_need():
    one = modules_to_import([sample_rows.spec("a", engine="lightning")], WORKER_MODULE)
    assert one[ROW_SOCKET_VARIABLE] == [*warm.NOTEBOOK_MODULES, WORKER_MODULE]
    assert warm.ENGINE_MODULE.format("lightning") in one[RANK_SOCKET_VARIABLE]
    assert warm.ENGINE_MODULE.format("litgpt") not in one[RANK_SOCKET_VARIABLE]
    assert warm.LAUNCHER_MODULE not in one[RANK_SOCKET_VARIABLE]
    assert warm.PROCESSOR_MODULE not in one[RANK_SOCKET_VARIABLE]
    offloaded = [sample_rows.spec("a", optimizer="deepspeed_cpu")]
    assert warm.PROCESSOR_MODULE in modules_to_import(offloaded, WORKER_MODULE)[RANK_SOCKET_VARIABLE]
    assert modules_to_import([sample_rows.spec("a")], "some.other.worker") == {
        ROW_SOCKET_VARIABLE: [*warm.NOTEBOOK_MODULES, "some.other.worker"]
    }


@pytest.mark.parametrize("ready", [True, False])
def test_a_kernel_starts_from_the_warm_process_only_if_that_is_ready(tmp_path, monkeypatch, ready):
    monkeypatch.setenv(ROW_SOCKET_VARIABLE, str(tmp_path / "socket"))
    if ready:
        (tmp_path / f"socket{READY_SUFFIX}").touch()
    command = WarmKernelManager(kernel_name="python3").format_kernel_cmd()
    kernel = command[command.index("-m") + 1 : command.index("-f")]
    assert kernel == [*([MODULE, ROW_SOCKET_VARIABLE] if ready else []), "ipykernel_launcher"]


async def kernel_sockets(folder: Path) -> list[Path]:
    """Start a kernel with temporary files in ``folder``; return its sockets once it answers, and end it."""
    manager = WarmKernelManager(kernel_name="python3")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=300)
    (private,) = folder.iterdir()
    assert private.stat().st_mode & 0o077 == 0
    found = [path for path in private.iterdir() if path.is_socket()]
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return found


@pytest.mark.parametrize(("folder", "sockets"), [("k", len(port_names)), ("long" * 25, 0)], ids=["short", "long"])
def test_the_channels_of_a_kernel_are_unix_sockets_unless_their_paths_are_too_long(
    tmp_path_factory, monkeypatch, folder, sockets
):
    monkeypatch.delenv(ROW_SOCKET_VARIABLE, raising=False)
    temporary = tmp_path_factory.mktemp(folder)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert len(asyncio.run(kernel_sockets(temporary))) == sockets
    assert list(temporary.iterdir()) == []


def test_a_closed_warm_process_leaves_no_file_and_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = WarmProcess(ROW_SOCKET_VARIABLE, ["json"])
    assert process.last_line_if_ended() is None
    wait_for(lambda: process.ready)
    process.close()
    assert list(tmp_path.iterdir()) == []
    assert not psutil.pid_exists(process._process.pid)


def test_the_modules_of_notebooks_are_initialized_before_the_warm_process_forks():
    assert warm_kernel.__name__ in warm.NOTEBOOK_MODULES
    assert KernelProvisionerFactory.initialized()
    assert validators


class FakeChannels(NoDelayKernelClient):
    """Client whose channels return the given messages; None stands for no message in time."""

    def __init__(self, shell: list[Any], iopub: list[Any], alive: bool = True) -> None:
        super().__init__()
        self.messages = {"shell": shell, "iopub": iopub}
        self.alive, self.requests = alive, 0

    def kernel_info(self) -> str:
        self.requests += 1
        return f"request-{self.requests}"

    async def get_shell_msg(self, timeout: float):
        return self._next("shell")

    async def get_iopub_msg(self, timeout: float):
        return self._next("iopub")

    async def is_alive(self) -> bool:
        return self.alive

    def _next(self, channel: str):
        message = self.messages[channel].pop(0) if self.messages[channel] else None
        if message is None:
            raise Empty
        return message


def idle(request: str) -> dict[str, Any]:
    return {"parent_header": {"msg_id": request}, "content": {"execution_state": "idle"}}


def busy(request: str) -> dict[str, Any]:
    return {"parent_header": {"msg_id": request}, "content": {"execution_state": "busy"}}


REPLY = {"content": {"protocol_version": "5.3"}}


@pytest.mark.parametrize(
    ("shell", "iopub", "requests"),
    [
        ([REPLY], [busy("request-1"), idle("request-1")], 1),
        ([REPLY, REPLY], [None, busy("request-2"), idle("request-1"), idle("request-2")], 2),
        ([None, REPLY], [idle("request-2")], 2),
    ],
    ids=["at once", "channel not connected in time", "kernel slow"],
)
def test_a_kernel_is_ready_once_it_has_answered_on_the_shell_and_the_iopub_channel(shell, iopub, requests):
    client = FakeChannels(shell, iopub)
    asyncio.run(client.wait_for_ready(timeout=300))
    assert client.requests == requests
    assert client.messages == {"shell": [], "iopub": []}


@pytest.mark.parametrize(
    ("alive", "within_s", "problem"), [(False, 300, "died before"), (True, 0, "did not answer within 0 s")]
)
def test_a_kernel_that_does_not_answer_is_an_error(alive, within_s, problem):
    with pytest.raises(RuntimeError, match=problem):
        asyncio.run(FakeChannels([], [], alive).wait_for_ready(timeout=within_s))
