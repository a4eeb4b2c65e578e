"""Measure the host's time in the passes of rows whose processes run at the same time, one on each GPU."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from experiments.results.schema import WARM_UP_STEPS, Phase
from experiments.suites.row_spec import RowSpec
from experiments.training import rank
from experiments.training.measure.meters import CudaMeter
from provision.temporary import TemporaryFolder

READS = ("item", "tolist", "__bool__", "__int__", "__float__")
"""Methods of a tensor with which Python reads its value, for which the host waits."""


class Waits:
    """Seconds in which Python's calls have waited for the GPU since ``count``."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._waiting = False

    def count(self) -> None:
        """Count the waits of tensors, events and torch.cuda.synchronize from now on."""
        for owner, name in [*((torch.Tensor, one) for one in READS), (torch.cuda.Event, "synchronize")]:
            setattr(owner, name, self._counted(getattr(owner, name)))
        setattr(torch.cuda, "synchronize", self._counted(torch.cuda.synchronize))  # noqa: B010 - not in the stubs

    def _counted(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outermost, self._waiting, begun = not self._waiting, True, time.perf_counter()
            try:
                return wait(*arguments, **options)
            finally:
                if outermost:
                    self._waiting = False
                    self.seconds += time.perf_counter() - begun

        return call


def measure_process(spec: RowSpec, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Train a row, or one rank of it; return a line with its speed and the median seconds of the host in each phase.

    environment: variables that torchrun sets for the rank, or the GPU of a row without ranks.
    """
    os.environ.update(environment)
    rank.hide_bitsandbytes()
    waits = Waits()
    waits.count()
    begun: list[tuple[str, float, float]] = []

    class Marks(CudaMeter):
        """Meter that notes when the host begins a phase, and how long it has waited until then."""

        def begin(self, phase: Phase) -> None:
            begun.append((phase, time.perf_counter(), waits.seconds))
            super().begin(phase)

        def end_micro_step(self) -> None:
            begun.append(("end", time.perf_counter(), waits.seconds))

    with TemporaryFolder("row") as folder:
        measured = rank.run_rank(spec, folder, Marks([int(os.environ.get("LOCAL_RANK", 0))]))
    assert measured.speed, measured.reason
    ends = [place for place, (name, *_) in enumerate(begun) if name == "end"]
    steady = begun[ends[WARM_UP_STEPS * spec.settings.accumulate - 1] + 1 :]
    work_s = defaultdict(list)
    for (name, before_s, waited_before_s), (_, after_s, waited_s) in pairwise(steady):
        work_s[name].append(after_s - before_s - (waited_s - waited_before_s))
    line = {
        "row": spec.row,
        "process": int(os.environ.get("RANK") or os.environ.get("CUDA_VISIBLE_DEVICES") or 0),
        "speed": measured.speed.model_dump(mode="json"),
        "work_s": {name: round(median(values), 6) for name, values in work_s.items() if name != "end"},
    }
    return [line]
