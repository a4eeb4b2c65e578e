"""The process of a part: its log, its end together with this process, and silence that somebody should know of."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments.system.signals import die_with_parent

SILENT_S = 600.0
LOOK_S = 5.0


class Silence:
    """Says once that nothing happens, until something happens again. seconds: how long nothing may happen."""

    def __init__(self, seconds: float = SILENT_S) -> None:
        self._seconds = seconds
        self._said = False

    def newly(self, last_s: float, now_s: float) -> bool:
        """Return whether the time since the last change has become too long."""
        silent = now_s - last_s >= self._seconds
        new, self._said = silent and not self._said, silent
        return new


def run_logged(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    look: Callable[[], None],
    patience_s: float | None = None,
    look_s: float = LOOK_S,
) -> int:
    """Run a command with its output in ``log``; call ``look`` every ``look_s`` seconds; return its exit code.

    The command has a session of its own, so Ctrl-C does not reach it twice. If this process is interrupted or killed,
    it gets SIGTERM, on which a lease is released; an interrupted call waits until it has ended, and kills it after
    ``patience_s`` seconds if they are given.
    """
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    try:
        while True:
            try:
                return process.wait(look_s)
            except subprocess.TimeoutExpired:
                look()
    except BaseException:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def last_change_s(folder: Path) -> float:
    """Return when a file in ``folder`` was last written, in seconds since the epoch; now if it has none."""
    times = []
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # a row's files come and go
            continue
    return max(times, default=time.time())


def last_line(log: Path) -> str:
    """Return the last line of a log that has a letter."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if any(map(str.isalpha, line))), "no output")
