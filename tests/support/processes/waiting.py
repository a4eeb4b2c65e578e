"""Waiting for processes, and handling of signals."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ANSWER_LIMIT_S = 30 * 60
"""Maximum time until a service whose process runs answers, seconds. On a busy machine, a service takes minutes."""
TAIL = 3000


def enable_interrupts() -> None:
    """Handle Ctrl-C as in a terminal.

    Without this, Ctrl-C is ignored by a shell's background processes and their children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition, within_s: float = 150.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "condition was not met in time"
        time.sleep(0.05)


def wait_until_up(
    name: str, process: subprocess.Popen[bytes], log: Path, answers: Callable[[], bool], limit_s: float = ANSWER_LIMIT_S
) -> None:
    """Wait until a service answers. Raises RuntimeError with the end of its log as soon as its process has ended."""
    until = time.monotonic() + limit_s
    while not answers():
        ended = process.poll() is not None
        if ended or time.monotonic() > until:
            state = f"ended with exit code {process.returncode}" if ended else f"does not answer after {limit_s:.0f} s"
            raise RuntimeError(f"{name} {state}:\n{log.read_text(errors='replace')[-TAIL:]}")
        time.sleep(0.1)
