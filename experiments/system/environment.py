"""Replace the environment of a process, also where other processes read it (/proc/PID/environ; Linux only).

The kernel shows the memory that it filled when the program was started, even in a forked process. This memory is
written again, so that a process found by its environment (see processes) is found after a fork, too.
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

ROOM = "TESTBED_ROOM"
"""Variable without a meaning that makes the kernel's memory large enough for a later environment."""
ROOM_BYTES = 100_000
START_FIELD = 47
"""Field of /proc/self/stat, after the command's name: where the environment starts; the next is where it ends."""


def with_room(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` for a program that calls replace_environment later."""
    return {**environment, ROOM: "x" * ROOM_BYTES}


def fits(environment: Mapping[str, str]) -> bool:
    """Return whether this process can show ``environment``."""
    start, end = _memory()
    return len(_encoded(environment)) <= end - start


def replace_environment(environment: Mapping[str, str]) -> None:
    """Make ``environment`` the one of this process, for Python, for C libraries, and for whoever reads it in /proc.

    Raises OSError if it is larger than the memory; see with_room.
    """
    start, end = _memory()
    block = _encoded(environment)
    if len(block) > end - start:
        raise OSError(f"the environment has {len(block)} bytes, there is room for {end - start}")
    os.environ.clear()
    os.environ.update(environment)  # copies: nothing points into the memory any more
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, block, len(block))


def _encoded(environment: Mapping[str, str]) -> bytes:
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())


def _memory() -> tuple[int, int]:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[START_FIELD]), int(fields[START_FIELD + 1])
