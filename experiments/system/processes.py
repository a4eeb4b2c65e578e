"""Start and kill several processes together: all processes of a process group, or all processes with a tag.

The tag is an environment variable that the processes have inherited. Processes are found by the tag even if they have
changed their session, or if another program started them.
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
def process_group(command: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Start a process in a new process group, with options for Popen; kill the group when the body ends.

    The process is also killed when this process ends.
    """
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def find_tagged(variable: str, value: str | None = None) -> list[psutil.Process]:
    """Return the running processes with ``variable`` in their environment. value: required value; None: any."""
    tagged = []
    for process in psutil.process_iter():
        tag = _read_tag(process, variable)
        if tag is not None and value in (None, tag):
            tagged.append(process)
    return tagged


def tag_of(pid: int, variable: str) -> str:
    """Return the value of ``variable`` in the environment of a process; "" if it is unset or the process has ended."""
    try:
        return _read_tag(psutil.Process(pid), variable) or ""
    except psutil.Error:
        return ""


def kill_tagged(variable: str, value: str, timeout_s: float) -> list[int]:
    """Kill the processes with the tag ``value``; return the ids of those that still run after ``timeout_s`` seconds.

    The tag of a process is the value of ``variable`` in its environment.
    """
    deadline = time.monotonic() + timeout_s
    while (alive := find_tagged(variable, value)) and time.monotonic() < deadline:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return [process.pid for process in alive]


def _read_tag(process: psutil.Process, variable: str) -> str | None:
    """Return the value of the variable in a process; None if it is not set or the process has ended."""
    try:
        return process.environ().get(variable) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
