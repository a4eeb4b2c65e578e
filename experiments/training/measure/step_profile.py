"""What the GPU does during one step of a training: shares of its time in communication and in waiting."""

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

COMMUNICATION = re.compile("nccl", re.IGNORECASE)
COPY = re.compile("^(Memcpy|Memset)")

Interval = tuple[float, float]


class StepProfile:
    """Records every kernel of the current GPU during one optimizer step, after another one that warms the recorder up.

    ``shares``, once there, are fields of Speed.
    """

    STEPS = 2

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self._profile: Any = None
        self._began: float | None = None

    def start(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CUDA], schedule=schedule(wait=0, warmup=1, active=1))
        self._profile.start()

    def step(self) -> bool:
        """An optimizer step is over; True when it was the recorded one."""
        torch.cuda.synchronize()
        now = time.perf_counter()
        if self._began is None:
            self._profile.step()
            self._began = time.perf_counter()
            return False
        self._profile.stop()
        kernels = [
            (event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
            for event in self._profile.events()
            if event.device_type == torch.autograd.DeviceType.CUDA and not COPY.match(event.name)
        ]
        self.shares = shares(kernels, now - self._began)
        return True


def shares(kernels: Sequence[tuple[str, float, float]], took_s: float) -> dict[str, float]:
    """Shares of ``took_s`` seconds, from each kernel's name, begin and end in seconds.

    communication_share: some kernel of NCCL runs, which includes that it waits for other ranks;
    exposed_communication_share: and no other kernel does; gpu_idle_share: no kernel runs at all.
    """
    exchange = union((begin, end) for name, begin, end in kernels if COMMUNICATION.search(name))
    work = union((begin, end) for name, begin, end in kernels if not COMMUNICATION.search(name))
    either = length(union([*exchange, *work]))
    return {
        "communication_share": length(exchange) / took_s,
        "exposed_communication_share": (either - length(work)) / took_s,
        "gpu_idle_share": max(0.0, 1 - either / took_s),
    }


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times without overlap, in order."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Seconds in all."""
    return sum(end - begin for begin, end in intervals)
