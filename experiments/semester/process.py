"""Run the process of a part, write its log, detect stalls, and end the process when this process ends."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments.system.signals import die_with_parent

STALL_LIMIT_S = 600.0
POLL_S = 5.0


class StallDetector:
    """Detector of stalls, each reported once. limit_s: time without progress that counts as a stall."""

    def __init__(self, limit_s: float = STALL_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._stalled = False

    def is_new_stall(self, last_change_s: float, now_s: float) -> bool:
        """Return whether the time since the last change has reached the limit, and had not at the previous call.

        last_change_s, now_s: the times of the last change and of this call, in seconds on the same clock.
        """
        stalled = now_s - last_change_s >= self._limit_s
        new, self._stalled = stalled and not self._stalled, stalled
        return new


def run_logged(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    poll: Callable[[], None],
    kill_after_s: float | None = None,
    poll_s: float = POLL_S,
) -> int:
    """Run a command with its output in ``log``, and call ``poll`` every ``poll_s`` seconds; return the exit code.

    The command runs in a new session, so that Ctrl-C does not reach the command directly. If this process is
    interrupted or killed, the command gets SIGTERM, and then releases its lease. An interrupted call waits until the
    command has ended. kill_after_s: maximum seconds of this wait, after which the command is killed; None: no maximum.
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
                return process.wait(poll_s)
            except subprocess.TimeoutExpired:
                poll()
    except BaseException:
        process.terminate()
        try:
            process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def last_change_s(folder: Path) -> float:
    """Return when a file in ``folder`` was last written, in seconds since the epoch; without files, return now."""
    times = []
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # files of a row may be deleted meanwhile
            continue
    return max(times, default=time.time())


def last_line(log: Path) -> str:
    """Return the last line of a log that has a letter; "no output" if there is none."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if any(map(str.isalpha, line))), "no output")


def first_line_with(words: str, log: Path) -> str:
    """Return the first line of a log that contains the text ``words``; without one, the last line that has a letter."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in lines if words in line), last_line(log))
