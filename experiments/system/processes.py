"""Process control: tagged processes, the end of parent processes, and signals.

Tagged processes belong together, whatever sessions they have moved to: all inherited an environment variable, the tag,
by which a program finds them even if it did not start them.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

import psutil

PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGTERM, signal.SIGHUP)


def tagged_processes(variable: str, value: str | None = None) -> list[psutil.Process]:
    """Return the living processes whose environment has ``variable``, with that value if one is given."""
    tagged = []
    for process in psutil.process_iter():
        tag = _tag(process, variable)
        if tag is not None and value in (None, tag):
            tagged.append(process)
    return tagged


def kill_tagged(variable: str, value: str, within_s: float) -> list[int]:
    """Kill tagged processes until none is left; return the ids of those that are still alive after ``within_s``."""
    deadline = time.monotonic() + within_s
    while (alive := tagged_processes(variable, value)) and time.monotonic() < deadline:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return [process.pid for process in alive]


def _tag(process: psutil.Process, variable: str) -> str | None:
    """Return the variable's value in a process, None for a zombie."""
    try:
        return process.environ().get(variable) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_with_parent(parent: int) -> None:
    """End this process together with its parent, the process ``parent``; exit at once if that has already ended."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended")


def stop_as_interrupt() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that leases are released on exit. Ignored signals stay ignored."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"received {signal.Signals(number).name}")
