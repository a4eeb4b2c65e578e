"""Signals that tell a command to stop."""

import signal
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGHUP)


def stop_as_interrupt() -> None:
    """Take a signal to stop as Ctrl-C: what was leased is released on the way out. One that is ignored stays so."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"told to stop by {signal.Signals(number).name}")
