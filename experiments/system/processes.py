"""Processes that end together: those of one group, and those with one tag.

Tagged processes have inherited the same environment variable, the tag. A program finds them by the tag, even if they
have changed their session or if another program started them.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from experiments.system.signals import die_with_parent


@contextmanager
def own_group(command: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Start a process with its own group, with Popen's ``options``; kill the whole group when the body ends.

    The process also ends with this one.
    """
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tagged_processes(variable: str, value: str | None = None) -> list[psutil.Process]:
    """Return the living processes whose environment has ``variable``, with that value if one is given."""
    tagged = []
    for process in psutil.process_iter():
        tag = _tag(process, variable)
        if tag is not None and value in (None, tag):
            tagged.append(process)
    return tagged


def kill_tagged(variable: str, value: str, within_s: float) -> list[int]:
    """Kill tagged processes until none is left; return the ids of those that are still alive after ``within_s``."""
    deadline = time.monotonic() + within_s
    while (alive := tagged_processes(variable, value)) and time.monotonic() < deadline:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return [process.pid for process in alive]


def _tag(process: psutil.Process, variable: str) -> str | None:
    """Return the variable's value in a process, None for a zombie."""
    try:
        return process.environ().get(variable) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
