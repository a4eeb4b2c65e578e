"""Profile the GPU during one training step: the shares of time for communication and for waiting."""

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

COMMUNICATION = re.compile("nccl", re.IGNORECASE)
MEMORY_OPERATION = re.compile("^(Memcpy|Memset)")

Interval = tuple[float, float]


class StepProfile:
    """Profile of all kernels of the current GPU during one optimizer step, after one step of warm-up.

    shares: the shares of the step's time, by field of Speed (see time_shares); empty until the profile is complete.
    """

    STEPS = 2
    """Number of optimizer steps that a profile needs: a step of warm-up and the profiled step."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self._profile: Any = None
        self._started: float | None = None

    def start(self) -> None:
        """Start the profiler."""
        self._profile = profile(activities=[ProfilerActivity.CUDA], schedule=schedule(wait=0, warmup=1, active=1))
        self._profile.start()

    def step(self) -> bool:
        """Report the end of an optimizer step; return True if this was the profiled step."""
        torch.cuda.synchronize()
        now = time.perf_counter()
        if self._started is None:
            self._profile.step()
            self._started = time.perf_counter()
            return False
        self._profile.stop()
        kernels = [
            (event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
            for event in self._profile.events()
            if event.device_type == torch.autograd.DeviceType.CUDA and not MEMORY_OPERATION.match(event.name)
        ]
        self.shares = time_shares(kernels, now - self._started)
        return True


def time_shares(kernels: Sequence[tuple[str, float, float]], duration_s: float) -> dict[str, float]:
    """Return shares of the step's duration. ``kernels``: name, begin and end in seconds of each kernel.

    communication_share: time with a running NCCL kernel, including its waits for other ranks.
    exposed_communication_share: time with a running NCCL kernel and no other kernel. gpu_idle_share: time without a
    running kernel.
    """
    communication = merge_intervals((begin, end) for name, begin, end in kernels if COMMUNICATION.search(name))
    computation = merge_intervals((begin, end) for name, begin, end in kernels if not COMMUNICATION.search(name))
    busy_s = total_length_s(merge_intervals([*communication, *computation]))
    return {
        "communication_share": total_length_s(communication) / duration_s,
        "exposed_communication_share": (busy_s - total_length_s(computation)) / duration_s,
        "gpu_idle_share": max(0.0, 1 - busy_s / duration_s),
    }


def merge_intervals(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of the intervals as sorted intervals without overlap."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def total_length_s(intervals: Iterable[Interval]) -> float:
    """Return the total length of the intervals, in seconds."""
    return sum(end - begin for begin, end in intervals)
