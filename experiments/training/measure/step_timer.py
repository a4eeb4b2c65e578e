"""Measure the time of training steps."""

import time
from typing import Any

import torch


class StepTimer:
    """Timer that does not wait for the device. The timer records CUDA events, or the wall clock on a CPU."""

    def __init__(self, uses_cuda: bool) -> None:
        self._uses_cuda = uses_cuda
        self._times: list[Any] = []

    def record(self) -> None:
        """Record the time at which the device finishes the work that was submitted so far."""
        if not self._uses_cuda:
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._times.append(event)

    def intervals_s(self) -> list[float]:
        """Return the seconds between consecutive records. Wait until the device has finished the recorded work."""
        pairs = zip(self._times, self._times[1:], strict=False)
        if not self._uses_cuda:
            return [after - before for before, after in pairs]
        self._times[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]
