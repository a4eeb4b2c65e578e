"""Handling of signals: the end of the parent process, and requests to stop. Uses only the standard library."""

import ctypes
import os
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGTERM, signal.SIGHUP)

forked_by: int | None = None
"""The warm process that forked this one and ends it together with the process that asked for it; None without one."""


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Make the kernel send this process a signal when its parent ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def exit_with_parent(parent: int) -> None:
    """End this process when its parent ends; exit at once if the parent, process ``parent``, has already ended.

    A process that the warm process forked ends when the warm process ends, which watches ``parent``.
    """
    die_with_parent()
    if os.getppid() != (forked_by or parent):
        sys.exit("the process that started this one has ended")


def stop_as_interrupt() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that leases are released on exit. Ignored signals stay ignored."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"received {signal.Signals(number).name}")
