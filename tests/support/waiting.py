"""Waiting for processes, and their signals."""

import signal
import time


def hear_interrupts() -> None:
    """Handle Ctrl-C as in a terminal: background processes of a shell ignore it, and so do their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(true, within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "condition was not met in time"
        time.sleep(0.05)
