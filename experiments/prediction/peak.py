"""What the phantom device's log says about memory: the parts of the peak, its moment, and what a training needs."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from experiments.prediction.phantom.library import Phantom, Replay
from experiments.results import memory_parts
from experiments.results.predictions import PeakParts
from experiments.results.schema import Failure, Phase
from experiments.system.files import GIB

UNTAGGED, BATCH = memory_parts.ACTIVATIONS.key, "batch"
KEPT = (memory_parts.PARAMETERS, memory_parts.GRADIENTS, memory_parts.OPTIMIZER, memory_parts.BUFFERS)
CATEGORIES = (UNTAGGED, *(part.key for part in KEPT), BATCH)
BUFFERS = CATEGORIES.index(memory_parts.BUFFERS.key)
UNLIMITED = 2**62
"""Capacity in bytes that no training reaches."""


class Tags:
    """The phases of a training as events of the log, and the categories of its tensors.

    last: the last event at which tensors were tagged, after the last optimizer step. Memory that is still
    allocated then and is not a weight, gradient or optimizer state counts as a buffer.
    """

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        self.phases: list[tuple[int, Phase]] = [(0, "load")]
        self.last = 0

    @property
    def event(self) -> int:
        """The number of events so far."""
        return self._phantom.stats()[4]

    def begin(self, phase: Phase) -> None:
        """Begin a phase with the next event."""
        self.phases.append((self.event, phase))

    def tag(self, kind: str, tensors: Iterable[Any]) -> None:
        """Set the category of these tensors' storages."""
        pointers = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.device.type == "cuda"]
        self._phantom.tag(pointers, CATEGORIES.index(kind))
        self.last = self.event - 1

    def moment(self, event: int) -> tuple[Phase, int, int]:
        """Return phase, optimizer step and micro-step of an event, counted from 0."""
        place = bisect_right(self.phases, event, key=lambda begun: begun[0]) - 1
        before = [phase for _, phase in self.phases[: place + 1]]
        steps = before[:-1].count("optimizer step")
        since = len(before) - 1 - before[-2::-1].index("optimizer step") if steps else 0
        return before[-1], steps, max(0, before[since:].count("forward") - 1)


def shares(phantom: Phantom, tags: Tags, free: Replay) -> PeakParts:
    """Return the parts of the peak. The bytes that the allocator adds by rounding count as activations."""
    phantom.tag_alive(tags.last, BUFFERS)
    by_name = dict(zip(CATEGORIES, phantom.alive(free.highest_at, len(CATEGORIES)), strict=True))
    kept = {part.field: by_name[part.key] for part in KEPT}
    activations = free.peak_allocated - sum(kept.values())
    return PeakParts(**{field: size / GIB for field, size in kept.items()}, activations_gib=activations / GIB)


def needed(phantom: Phantom, free: Replay) -> int:
    """Return the smallest capacity in bytes with which the training runs, to 0.2%."""
    low, high = free.peak_allocated - 1, free.peak_reserved
    while high - low > high // 500:
        middle = (low + high) // 2
        if phantom.replay(middle).failed_at is None:
            high = middle
        else:
            low = middle
    return high


def failure(limited: Replay, tags: Tags) -> Failure | None:
    """Return where a training runs out of memory in that replay; None if it does not."""
    if limited.failed_at is None:
        return None
    phase, step, micro_step = tags.moment(limited.failed_at)
    return Failure(
        phase=phase,
        step=step,
        micro_step=micro_step,
        requested_gib=limited.requested / GIB,
        kind="OutOfMemoryError",
        message=f"{limited.requested / GIB:.2f} GiB more does not fit",
    )
