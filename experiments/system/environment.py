"""Replace the environment of a process, also where other processes read it (/proc/PID/environ; Linux only).

/proc/PID/environ shows the environment with which a program started, without later changes. A forked process shows the
environment with which its parent's program started. This module overwrites the memory that Linux shows. Other programs
can then find a forked process by its new environment (see processes).
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

PADDING_VARIABLE = "TESTBED_ROOM"
"""Variable without a meaning, which enlarges the environment memory so that a later environment fits into it."""
PADDING_BYTES = 100_000
ENVIRONMENT_START_FIELD = 47
"""Index of the field of /proc/self/stat with the environment's start address, counted after the command's name. The
next field has the end address."""


def pad_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` with padding, for a program that later calls replace_environment."""
    return {**environment, PADDING_VARIABLE: "x" * PADDING_BYTES}


def fits_environment_memory(environment: Mapping[str, str]) -> bool:
    """Return True if ``environment`` fits into the environment memory of this process."""
    start, end = _environment_memory()
    return len(_encode(environment)) <= end - start


def replace_environment(environment: Mapping[str, str]) -> None:
    """Replace the environment of this process for Python, for C libraries, and for programs that read it in /proc.

    Raises OSError if ``environment`` is larger than the environment memory; see pad_environment.
    """
    start, end = _environment_memory()
    block = _encode(environment)
    if len(block) > end - start:
        raise OSError(f"the environment has {len(block)} bytes; allowed: at most {end - start}")
    os.environ.clear()
    os.environ.update(environment)  # copies the values, so that nothing points into the old memory any more
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, block, len(block))


def _encode(environment: Mapping[str, str]) -> bytes:
    return b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())


def _environment_memory() -> tuple[int, int]:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[ENVIRONMENT_START_FIELD]), int(fields[ENVIRONMENT_START_FIELD + 1])
