"""Analyze the log of the phantom device, a simulated GPU: the peak of memory, its parts, and the needed memory."""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from experiments.prediction.phantom.library import Phantom, Replay
from experiments.results import memory_parts
from experiments.results.predictions import PeakParts
from experiments.results.schema import Failure, Phase
from experiments.system.files import GIB

UNTAGGED, BATCH = memory_parts.ACTIVATIONS.key, "batch"
"""Categories of memory: without a tag, memory counts as activations; BATCH is the input of a micro-step."""
TAGGED_PARTS = (
    memory_parts.PARAMETERS,
    memory_parts.GRADIENTS,
    memory_parts.OPTIMIZER,
    memory_parts.BUFFERS,
    memory_parts.CACHE,
)
CATEGORIES = (UNTAGGED, *(part.key for part in TAGGED_PARTS), BATCH)
"""All categories; the phantom device gets the index of a category."""
UNLIMITED = 2**62
"""Capacity in bytes that is enough for every training."""


class MemoryTags:
    """Starts of the phases of a training in the log, and tags that give tensors a category.

    An event is an entry of the log, such as an allocation or a release of memory.

    last_tagged_event: the last event at which tensors were tagged, after the last optimizer step. Memory that is still
    allocated at this event and is not a weight, gradient or optimizer state counts as a buffer.
    """

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        self.phases: list[tuple[int, Phase]] = [(0, "load")]
        self.last_tagged_event = 0
        self._owners = {"": 0}

    @property
    def event_count(self) -> int:
        """The number of events so far."""
        return self._phantom.stats()[4]

    def begin_phase(self, phase: Phase) -> None:
        """Begin a phase with the next event."""
        self.phases.append((self.event_count, phase))

    def tag_tensors(self, category: str, tensors: Iterable[Any]) -> None:
        """Set the category of the storages of ``tensors`` to ``category``, one of CATEGORIES."""
        self._tag(category, tensors)
        self.last_tagged_event = self.event_count - 1

    def set_owner(self, owner: str, tensors: Iterable[Any]) -> None:
        """Set the owner of the storages of ``tensors``, the name of a module."""
        self._phantom.set_owner(_pointers(tensors), self._owners.setdefault(owner, len(self._owners)))

    def owners(self) -> list[str]:
        """Return the names of all owners in the order of their numbers; that of 0 is empty."""
        return [*self._owners]

    def tag_cache(self, output: Any) -> None:
        """Set the category of the key-value cache in the output of a model of transformers, if it has one."""
        cache = getattr(output, "past_key_values", None)
        for part in (getattr(cache, "self_attention_cache", cache), getattr(cache, "cross_attention_cache", None)):
            for layer in getattr(part, "layers", ()):
                self._tag(
                    memory_parts.CACHE.key, (one for one in vars(layer).values() if hasattr(one, "untyped_storage"))
                )

    def _tag(self, category: str, tensors: Iterable[Any]) -> None:
        self._phantom.tag(_pointers(tensors), CATEGORIES.index(category))

    def position_at(self, event: int) -> tuple[Phase, int, int]:
        """Return the phase, optimizer step and micro-step of an event; steps are counted from 0."""
        index = bisect_right(self.phases, event, key=lambda start: start[0]) - 1
        before = [phase for _, phase in self.phases[: index + 1]]
        steps = before[:-1].count("optimizer step")
        since = len(before) - 1 - before[-2::-1].index("optimizer step") if steps else 0
        return before[-1], steps, max(0, before[since:].count("forward") - 1)


def _pointers(tensors: Iterable[Any]) -> list[int]:
    """Return the data pointers of the storages of ``tensors`` that are on the GPU."""
    pointers = []
    for tensor in itertools.chain.from_iterable(map(_plain_tensors, tensors)):
        if tensor.device.type == "cuda":
            with suppress(NotImplementedError):  # a wrapper of torch.func has no storage
                pointers.append(tensor.untyped_storage().data_ptr())
    return pointers


def _plain_tensors(tensor: Any) -> Iterator[Any]:
    """Yield the tensors that hold the memory of ``tensor``: itself, or parts of a distributed or quantized tensor."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    elif hasattr(tensor, "untyped_storage"):
        yield tensor


def parts_of_peak(phantom: Phantom, tags: MemoryTags, unlimited_replay: Replay) -> PeakParts:
    """Return the parts of the peak in GiB. Bytes that the allocator adds by rounding count as activations.

    unlimited_replay: replay of the log with the capacity UNLIMITED.
    """
    phantom.tag_untagged(tags.last_tagged_event, CATEGORIES.index(memory_parts.BUFFERS.key))
    by_name = dict(
        zip(CATEGORIES, phantom.bytes_by_category(unlimited_replay.peak_event, len(CATEGORIES)), strict=True)
    )
    tagged = {part.field: by_name[part.key] for part in TAGGED_PARTS}
    activations = unlimited_replay.peak_allocated - sum(tagged.values())
    return PeakParts(**{field: size / GIB for field, size in tagged.items()}, activations_gib=activations / GIB)


def needed_bytes(phantom: Phantom, unlimited_replay: Replay) -> int:
    """Return the capacity in bytes from which on the training completes, with an error of at most 0.2 %.

    With a little less memory, the allocator frees its cache at other times. So a training can run out of memory that
    completes with even less. The search begins at the capacity with which the cache need not be freed, and descends in
    steps of 0.25 %. All capacities from the reserved memory of a replay to the capacity of this replay have the same
    course.
    """
    low, needed = unlimited_replay.peak_allocated - 1, unlimited_replay.peak_reserved
    while needed - low > needed // 500:
        capacity = max(needed - max(needed // 400, 1), (low + needed) // 2)
        smaller = phantom.replay(capacity)
        if smaller.failed_event is None:
            needed = max(smaller.peak_reserved, low + 1)
        else:
            low = capacity
    return needed


def failure_in_replay(limited_replay: Replay, tags: MemoryTags) -> Failure | None:
    """Return where the training ran out of memory in the replay ``limited_replay``; None if it completed."""
    if limited_replay.failed_event is None:
        return None
    phase, step, micro_step = tags.position_at(limited_replay.failed_event)
    return Failure(
        phase=phase,
        step=step,
        micro_step=micro_step,
        requested_gib=limited_replay.requested / GIB,
        kind="OutOfMemoryError",
        message=f"{limited_replay.requested / GIB:.2f} GiB more does not fit",
    )
