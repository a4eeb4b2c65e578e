"""Waits for processes, and their signals."""

import signal
import time


def hear_interrupts() -> None:
    """As in a terminal; what a shell starts in the background is deaf to Ctrl-C, and so are its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(true, within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "did not come about"
        time.sleep(0.05)
