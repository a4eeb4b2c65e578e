"""A process that does not outlive the one that started it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def tie_to(parent: int) -> None:
    """Have this process end with its parent, which was the process ``parent``, also when that has already ended."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended")
