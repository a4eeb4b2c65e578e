"""Tagged processes: found and killed together.

Tagged processes have inherited the same environment variable, the tag. A program finds them by the tag, even if they
have changed their session or if another program started them.
"""

import time
from contextlib import suppress

import psutil


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
