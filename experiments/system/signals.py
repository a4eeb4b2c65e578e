"""End a process together with its parent, and handle requests to stop. Uses only the standard library."""

import ctypes
import os
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

warm_process_pid: int | None = None
"""Process id of the warm process that forked this process; None for a process that started as a new interpreter."""


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Make Linux send this process a signal when its parent ends (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def exit_with_parent(parent: int) -> None:
    """End this process when its parent ends; exit at once if the parent, process ``parent``, has already ended.

    A process that was forked by the warm process ends with the warm process, which monitors ``parent``.
    """
    die_with_parent()
    if os.getppid() != (warm_process_pid or parent):
        sys.exit("the process that started this one has ended")


def interrupt_on_stop_signals() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that leases are released on exit. Ignored signals stay ignored."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise_interrupt)


def _raise_interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"received {signal.Signals(number).name}")
