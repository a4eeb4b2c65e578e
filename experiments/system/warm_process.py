"""Run the warm process, which imports modules once and then forks processes that need them (Linux only).

    python -u -m experiments.system.warm_process SOCKET MODULE...

The warm process imports each MODULE and then serves requests at SOCKET (see warm_start). Each started process is like
one that `python -u -m` starts: it has its own session, environment, folder and output, and no signal handlers. When it
ends, it runs exit handlers but does not free the imported modules. A started process is killed when the requesting
process closes the connection, or when the warm process ends.

A module that cannot be imported is skipped. After the imports, the warm process ends if it has more than one thread or
has opened a GPU, because neither survives a fork.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from experiments.system import signals
from experiments.system.environment import fits_environment_memory, replace_environment

READY_SUFFIX = ".ready"
"""Suffix of the file that shows that the imports are complete."""
GPU_DEVICE_FILES = ("/dev/nvidia-uvm", "/dev/kfd")
MESSAGE_BYTES = 1 << 20
OUTPUT_DESCRIPTORS = (1, 2)


@dataclass(frozen=True)
class StartRequest:
    """Request to start a process.

    command: a module and its arguments. folder: the working directory. oom_score_adj: see the manual page proc(5).
    outputs: file descriptors that become stdout and stderr.
    """

    command: list[str]
    environment: dict[str, str]
    folder: str
    oom_score_adj: str
    outputs: tuple[int, int]


@dataclass
class StartedProcess:
    """A started process, and the connection to the process that requested it."""

    pid: int
    pidfd: int
    connection: socket.socket


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection in the body. The import of an engine then takes a quarter less time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def import_modules(names: Sequence[str]) -> None:
    """Import the modules; print a traceback for each module that cannot be imported."""
    for name in names:
        try:
            with without_garbage_collection():
                importlib.import_module(name)
        except Exception:
            traceback.print_exc()


def find_fork_obstacles() -> list[str]:
    """Return the reasons why this process must not be forked: additional threads, and open GPUs."""
    found = []
    names = sorted(Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task"))
    if threading.active_count() > 1 or len(names) > 1:
        found.append(f"{len(names)} threads: {', '.join(names)}")
    torch: Any = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        found.append("CUDA is initialized")
    found += [f"{path} is open" for path in _open_files() if path in GPU_DEVICE_FILES]
    return found


class WarmProcessServer:
    """Server that starts processes on request until its parent ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._started: dict[socket.socket, StartedProcess] = {}

    def serve(self) -> StartRequest:
        """Serve requests forever. Returns only in a started process, with the request for it."""
        while True:
            key = self._selector.select()[0][0]  # only one event: its handler may close the other files
            if key.data is not None:
                self._report_exit(key.data)
            elif key.fileobj is self._listener:
                self._selector.register(self._listener.accept()[0], selectors.EVENT_READ)
            elif isinstance(connection := key.fileobj, socket.socket) and (request := self._handle_message(connection)):
                return request

    def _handle_message(self, connection: socket.socket) -> StartRequest | None:
        """Start the requested process, or kill the process whose connection is closed.

        Returns the request in the started process, else None.
        """
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, len(OUTPUT_DESCRIPTORS))
        except OSError:
            message, descriptors = b"", []
        if not message:
            self._close_connection(connection)
            return None
        request = StartRequest(**json.loads(message), outputs=(descriptors[0], descriptors[1]))
        return request if self._fork_requested_process(request, connection) else None

    def _fork_requested_process(self, request: StartRequest, connection: socket.socket) -> bool:
        """Start the process; return True in the started process."""
        if not fits_environment_memory(request.environment):
            self._close_connection(connection)
            return False
        if (pid := os.fork()) == 0:
            return True
        for descriptor in request.outputs:
            os.close(descriptor)
        started = StartedProcess(pid, os.pidfd_open(pid), connection)
        self._started[connection] = started
        self._selector.register(started.pidfd, selectors.EVENT_READ, started)
        _send_number(connection, pid)
        return False

    def _report_exit(self, started: StartedProcess) -> None:
        """Report the exit code of a process that has ended."""
        self._selector.unregister(started.pidfd)
        os.close(started.pidfd)
        _, status = os.waitpid(started.pid, 0)
        del self._started[started.connection]
        _send_number(started.connection, os.waitstatus_to_exitcode(status))

    def _close_connection(self, connection: socket.socket) -> None:
        if started := self._started.get(connection):
            os.kill(started.pid, signal.SIGKILL)
            self._report_exit(started)
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()

    def close(self) -> None:
        """Close all files of the warm process in a started process."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()


def set_up_process(request: StartRequest, warm_pid: int) -> None:
    """Set up this forked process for the request: session, output, folder, environment and arguments."""
    signals.die_with_parent()
    signals.warm_process_pid = warm_pid
    if os.getppid() != warm_pid:
        os._exit(1)
    os.setsid()
    for descriptor, output in zip(request.outputs, OUTPUT_DESCRIPTORS, strict=True):
        os.dup2(descriptor, output)
        os.close(descriptor)
    Path("/proc/self/oom_score_adj").write_text(request.oom_score_adj)
    os.chdir(request.folder)
    replace_environment(request.environment)
    tempfile.tempdir = None
    sys.path[0] = request.folder
    sys.argv = request.command
    sys.orig_argv[:] = [sys.executable, "-u", "-m", *request.command]
    torch: Any = sys.modules.get("torch")
    if torch and (threads := request.environment.get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))


def run_module(name: str) -> int:
    """Run a module like `python -m`; return the exit code."""
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end_process(code: int) -> NoReturn:
    """End this process like the interpreter, but do not free the modules, which would take seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(address: str, modules: Sequence[str]) -> NoReturn:
    """Run the warm process; in a started process, run the requested module."""
    pid = os.getpid()
    signals.die_with_parent()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        import_modules(modules)
        gc.freeze()
        if found := find_fork_obstacles():
            sys.exit(f"rows cannot start from this process: {'; '.join(found)}")
        Path(address + READY_SUFFIX).touch()
        warm = WarmProcessServer(listener)
        request = warm.serve()
        warm.close()
    set_up_process(request, pid)
    end_process(run_module(request.command[0]))


def _send_number(connection: socket.socket, number: int) -> None:
    with suppress(OSError):
        connection.send(str(number).encode())


def _open_files() -> list[str]:
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return paths


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
