"""Check that a row has freed the memory of its GPUs."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

from experiments.runners.local import row_process
from provision.hardware import gpus

TOLERANCE_GIB = 0.25
POLL_INTERVAL_S = 0.05


def gpus_still_in_use(
    idle_gib: dict[int, float], neighbors_gib: Callable[[int], float] = lambda index: 0.0, within_s: float = 30.0
) -> dict[int, float]:
    """Wait until the memory of the GPUs is free again; return the GPUs whose memory is not free after ``within_s`` s.

    idle_gib: memory that is in use on each GPU without rows, GiB, by the index of the GPU. neighbors_gib: returns the
    memory that running rows use on a GPU, GiB; this memory is not counted. Returns the memory in use, GiB, by index.
    """
    deadline = time.monotonic() + within_s
    while True:
        used_gib = gpus.used_gib(list(idle_gib))
        now_gib = {index: used_gib[index] - neighbors_gib(index) for index in idle_gib}
        in_use = {index: gib for index, gib in now_gib.items() if gib > idle_gib[index] + TOLERANCE_GIB}
        if not in_use or time.monotonic() > deadline:
            return in_use
        time.sleep(POLL_INTERVAL_S)


def memory_of_rows(index: int, folders: Collection[Path], max_row_gib: float) -> float:
    """Return the memory that running rows use on a GPU, GiB. folders: the rows' folders.

    Each row counts with the memory of its processes plus a tolerance, because drivers do not attribute all memory of a
    process to the process. The driver reports no process of a row that has not opened the GPU yet, and some drivers
    report no processes at all. Such a row counts with ``max_row_gib``, the maximum memory of a row.
    """
    used_by_row_gib = {str(folder.resolve()): 0.0 for folder in folders}
    for pid, gib in (gpus.process_gib(index) if folders else {}).items():
        if (row := row_process.row_folder_of(pid)) in used_by_row_gib:
            used_by_row_gib[row] += gib
    return sum(gib + TOLERANCE_GIB if gib else max_row_gib for gib in used_by_row_gib.values())
