"""Start Python modules as processes: forked from the warm process if there is one, else by a new interpreter.

    python -u -m experiments.system.warm_start MODULE ARGUMENTS...

The warm process (see warm_process) is the one whose socket the variable TESTBED_WARM names. The command stands for the
process that it starts: it passes signals on, and ends as that one does. It is for programs that start ranks themselves.
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
from experiments.system.warm_process import MESSAGE_BYTES, READY

WARM_VARIABLE = "TESTBED_WARM"
MODULE = "experiments.system.warm_start"
POLL_S = 0.05


class Process(Protocol):
    """A started process, as subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class NoWarmProcess(Exception):
    """There is no warm process, or it cannot start this one."""


class WarmStarted:
    """A process that the warm process has started, which it kills when this object or process ends."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._receive(socket.MSG_DONTWAIT)

    def wait(self) -> int:
        """Return the exit code when the process has ended."""
        code = self._receive()
        assert code is not None
        return code

    def _receive(self, flags: int = 0) -> int | None:
        """Return the exit code. A warm process that ends takes all its processes with it, by SIGKILL."""
        with suppress(BlockingIOError):
            if self._code is None:
                self._code = int(_message(self._connection, flags) or -signal.SIGKILL)
                self._connection.close()
        return self._code


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: int,
    patient: bool = False,
    preexec: Callable[[], None] | None = None,
) -> Process:
    """Start `python -u -m`, with the arguments ``command``, in a session of its own; ``output`` gets what it prints.

    The warm process that ``environment`` names starts it if that has done its imports; ``patient`` waits for them. A
    new interpreter calls ``preexec`` first; a process of the warm process has this process's score for the OOM killer.
    """
    with suppress(NoWarmProcess):
        if patient or is_ready(environment):
            return start_warm(command, environment, (output, output))
    return subprocess.Popen(
        [sys.executable, "-u", "-m", *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=preexec,
    )


def start_warm(command: Sequence[str], environment: Mapping[str, str], outputs: tuple[int, int]) -> WarmStarted:
    """Have the warm process start the module, as soon as it has done its imports. Raises NoWarmProcess."""
    request = {
        "command": list(command),
        "environment": dict(environment),
        "folder": str(Path.cwd()),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
    }
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(environment[WARM_VARIABLE])
        socket.send_fds(connection, [json.dumps(request).encode()], outputs)
        pid = int(_message(connection))
    except (KeyError, OSError, ValueError) as error:
        connection.close()
        raise NoWarmProcess(str(error)) from None
    return WarmStarted(pid, connection)


def prefix(environment: Mapping[str, str]) -> list[str]:
    """Return what precedes a module in a command that starts it: this module if there is a warm process."""
    return [MODULE] if is_ready(environment) else []


def is_ready(environment: Mapping[str, str]) -> bool:
    """Return whether the warm process of ``environment`` has done its imports."""
    return os.path.exists(environment.get(WARM_VARIABLE, "") + READY)


def _message(connection: socket.socket, flags: int = 0) -> bytes:
    """Return the next message; empty if the warm process has ended or has closed the connection."""
    with suppress(ConnectionError):
        return connection.recv(MESSAGE_BYTES, flags)
    return b""


def main(command: Sequence[str]) -> int:
    """Run the module as this process, or be another process that runs it: pass on signals, end with its exit code."""
    signals.die_with_parent()
    try:
        started = start_warm(command, os.environ, (1, 2))
    except NoWarmProcess:
        sys.argv = list(command)
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        return 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(started.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, pass_on)
    while (code := started.poll()) is None:
        time.sleep(POLL_S)
    if code < 0:
        _die_of(-code)
    return code


def _die_of(number: int) -> None:
    """End this process by a signal, without a core dump of its own."""
    with suppress(OSError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
