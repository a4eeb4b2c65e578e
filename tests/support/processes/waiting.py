"""Waiting for processes, and handling of signals."""

import signal
import time


def hear_interrupts() -> None:
    """Handle Ctrl-C as in a terminal.

    Otherwise it is ignored: a shell's background processes and their children ignore it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(true, within_s: float = 150.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "condition was not met in time"
        time.sleep(0.05)
