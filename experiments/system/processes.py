"""Processes that belong together, whatever sessions they have moved to: all inherited one environment variable.

A family is found by the variable's name and its own value, also by a program that did not start it.
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
    """Every living process that has ``variable`` with that value, or with any."""
    found = []
    for process in psutil.process_iter():
        mark = _mark(process, variable)
        if mark is not None and value in (None, mark):
            found.append(process)
    return found


def kill_tagged(variable: str, value: str, within_s: float) -> list[int]:
    """Kill a whole family; the ids of those that were still there when ``within_s`` had passed."""
    deadline = time.monotonic() + within_s
    while (left := tagged_processes(variable, value)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return [process.pid for process in left]


def _mark(process: psutil.Process, variable: str) -> str | None:
    """The variable's value in a process; a zombie holds nothing and does not count."""
    try:
        return process.environ().get(variable) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_with_parent(parent: int) -> None:
    """Have this process end with its parent, which was the process ``parent``, also when that has already ended."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended")


def stop_as_interrupt() -> None:
    """Take a signal to stop as Ctrl-C: what was leased is released on the way out. One that is ignored stays so."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"told to stop by {signal.Signals(number).name}")
