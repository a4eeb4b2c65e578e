"""Start Python modules as processes, by a fork of the warm process if there is one, else by a new interpreter.

    python -u -m experiments.system.warm_start VARIABLE MODULE ARGUMENTS...

There are two warm processes (see warm_process). One starts notebooks, kernels and workers. The other starts launchers
and ranks. VARIABLE is the environment variable with the address of a warm process's socket: ROW_SOCKET_VARIABLE for the
first, RANK_SOCKET_VARIABLE for the second. Programs that start kernels or ranks themselves use the command above. The
command forwards signals to the process that it starts, and ends with the exit code of that process.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from experiments.system import signals
from experiments.system.warm_process import MESSAGE_BYTES, READY_SUFFIX

ROW_SOCKET_VARIABLE = "TESTBED_WARM_ROWS"
RANK_SOCKET_VARIABLE = "TESTBED_WARM_RANKS"
MODULE = "experiments.system.warm_start"
POLL_INTERVAL_S = 0.05


class Process(Protocol):
    """A started process, with methods of subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class WarmProcessUnavailable(Exception):
    """The warm process does not exist, or cannot start the requested process."""


class WarmStartedProcess:
    """A process that the warm process has started. It is killed when this object is deleted or this process ends."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._receive(socket.MSG_DONTWAIT)

    def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        code = self._receive()
        assert code is not None
        return code

    def _receive(self, flags: int = 0) -> int | None:
        """Return the exit code; None while the process runs. It is -SIGKILL if the warm process has ended."""
        with suppress(BlockingIOError):
            if self._code is None:
                self._code = int(_receive_message(self._connection, flags) or -signal.SIGKILL)
                self._connection.close()
        return self._code


def start_process(
    variable: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    output: int,
    wait_for_imports: bool = False,
    preexec: Callable[[], None] | None = None,
) -> Process:
    """Start `python -u -m COMMAND` in a new session, with its output written to the file descriptor ``output``.

    variable: name of the environment variable with the address of a warm process's socket. If the imports of this warm
    process are complete, it starts COMMAND. With ``wait_for_imports``, this function waits for the imports. Otherwise,
    and without a warm process, a new interpreter is started, which calls ``preexec`` first. A fork of the warm process
    does not call ``preexec``, but gets the OOM score of this process.
    """
    with suppress(WarmProcessUnavailable):
        if wait_for_imports or is_ready(environment, variable):
            return start_in_warm_process(variable, command, environment, (output, output))
    return subprocess.Popen(
        [sys.executable, "-u", "-m", *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=preexec,
    )


def start_in_warm_process(
    variable: str, command: Sequence[str], environment: Mapping[str, str], outputs: tuple[int, int]
) -> WarmStartedProcess:
    """Start the module in the warm process, as soon as its imports are complete. Raises WarmProcessUnavailable."""
    request = {
        "command": list(command),
        "environment": dict(environment),
        "folder": str(Path.cwd()),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
    }
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(environment[variable])
        socket.send_fds(connection, [json.dumps(request).encode()], outputs)
        pid = int(_receive_message(connection))
    except (KeyError, OSError, ValueError) as error:
        connection.close()
        raise WarmProcessUnavailable(str(error)) from None
    return WarmStartedProcess(pid, connection)


def module_prefix(environment: Mapping[str, str], variable: str) -> list[str]:
    """Return the words to insert before a module's name in a command, so that the warm process starts the module.

    Return no words if the warm process is not ready.
    """
    return [MODULE, variable] if is_ready(environment, variable) else []


def is_ready(environment: Mapping[str, str], variable: str) -> bool:
    """Return True if the warm process with the socket address ``environment[variable]`` has completed its imports."""
    return os.path.exists(environment.get(variable, "") + READY_SUFFIX)


def _receive_message(connection: socket.socket, flags: int = 0) -> bytes:
    """Return the next message; empty if the warm process has ended or has closed the connection."""
    with suppress(ConnectionError):
        return connection.recv(MESSAGE_BYTES, flags)
    return b""


def main(variable: str, command: Sequence[str]) -> int:
    """Start the module in the warm process, forward signals to it, and return its exit code.

    Without a warm process, run the module in this process.
    """
    signals.die_with_parent()
    try:
        started = start_in_warm_process(variable, command, os.environ, (1, 2))
    except WarmProcessUnavailable:
        sys.argv = list(command)
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        return 0

    def forward_signal(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(started.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, forward_signal)
    while (code := started.poll()) is None:
        time.sleep(POLL_INTERVAL_S)
    if code < 0:
        _end_by_signal(-code)
    return code


def _end_by_signal(number: int) -> None:
    """End this process by a signal, without a second core dump."""
    with suppress(OSError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
