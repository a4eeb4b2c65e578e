"""Whether a GPU is free again after a row."""

import time
from collections.abc import Sequence

import pynvml

from experiments.system.files import GIB
from provision.hardware import amd

SLACK_GIB = 0.25


def used_gib(indices: Sequence[int]) -> dict[int, float]:
    """Memory in use on each of these GPUs, by everybody, GiB."""
    if not indices:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        there = amd.devices()
        return {index: there[index].used_gib for index in indices}
    try:
        return {index: _used_gib(index) for index in indices}
    finally:
        pynvml.nvmlShutdown()


def not_free(before: dict[int, float], within_s: float = 30.0) -> dict[int, float]:
    """The GPUs that still hold more than in ``before`` when ``within_s`` has passed, with how much, GiB."""
    deadline = time.monotonic() + within_s
    while True:
        now = used_gib(list(before))
        held = {index: now[index] for index in before if now[index] > before[index] + SLACK_GIB}
        if not held or time.monotonic() > deadline:
            return held
        time.sleep(0.2)


def _used_gib(index: int) -> float:
    return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).used / GIB
