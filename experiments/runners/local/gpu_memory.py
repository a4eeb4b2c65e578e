"""Check that a row has freed the memory of its GPUs."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

from experiments.runners.local import row_process
from provision.hardware import gpus

TOLERANCE_GIB = 0.25
POLL_INTERVAL_S = 0.05


def gpus_still_in_use(
    before: dict[int, float], neighbors_gib: Callable[[int], float] = lambda index: 0.0, within_s: float = 30.0
) -> dict[int, float]:
    """Wait at most ``within_s`` s until no GPU uses more memory than in ``before``; return the GPUs that still do.

    Returned is the memory in use on each of these GPUs, by index, GiB. before: memory in use on each GPU at an earlier
    time, by index, GiB. neighbors_gib: returns the memory that running rows use on a GPU, which is not counted.
    """
    deadline = time.monotonic() + within_s
    while True:
        used = gpus.used_gib(list(before))
        now = {index: used[index] - neighbors_gib(index) for index in before}
        in_use = {index: now[index] for index in before if now[index] > before[index] + TOLERANCE_GIB}
        if not in_use or time.monotonic() > deadline:
            return in_use
        time.sleep(POLL_INTERVAL_S)


def memory_of_rows(index: int, folders: Collection[Path], max_row_gib: float) -> float:
    """Return the memory of running rows on a GPU, GiB. folders: the rows' folders.

    Each row counts with the memory of its processes and a tolerance, because drivers do not attribute all memory of a
    process to it. The driver reports no process of a row that has not opened the GPU yet, and some drivers report no
    processes at all. Such a row counts with ``max_row_gib``, the most that a row may use.
    """
    own_gib = {str(folder.resolve()): 0.0 for folder in folders}
    for pid, gib in (gpus.process_gib(index) if folders else {}).items():
        if (row := row_process.row_folder_of(pid)) in own_gib:
            own_gib[row] += gib
    return sum(gib + TOLERANCE_GIB if gib else max_row_gib for gib in own_gib.values())
