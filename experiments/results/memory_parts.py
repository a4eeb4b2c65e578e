"""The parts of memory and the points of a training step, with their names for tables, charts and the tracer."""

from typing import Literal, NamedTuple, get_args

StepPoint = Literal["before forward", "after forward", "after backward", "after optimizer step"]
STEP_POINTS: tuple[StepPoint, ...] = get_args(StepPoint)


class MemoryPart(NamedTuple):
    """One part of memory. key: its name in the tracer and in fields. short: the heading of its column on a terminal."""

    key: str
    name: str
    short: str

    @property
    def field(self) -> str:
        """Return the name of the part's field in Snapshot and PeakParts."""
        return f"{self.key}_gib"


PARAMETERS = MemoryPart("params", "parameters", "params")
GRADIENTS = MemoryPart("grads", "gradients", "grads")
OPTIMIZER = MemoryPart("optimizer", "optimizer", "optim.")
OPTIMIZER_CPU = MemoryPart("optimizer_cpu", "optimizer in host memory", "host")
ACTIVATIONS = MemoryPart("activations", "activations", "activ.")
BUFFERS = MemoryPart("buffers", "buffers", "buffers")
CACHE = MemoryPart("cache", "key-value cache", "cache")
TEMPORARY = MemoryPart("temporary", "temporary memory of the optimizer", "temp.")
"""A part of the activations where the parts of a peak are listed, and a part of its own in lists of allocations."""

PARTS_AT_POINT = (PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS)
PARTS_AT_PEAK = (*PARTS_AT_POINT, BUFFERS)
PARTS_OF_SCRIPT = (*PARTS_AT_PEAK, CACHE)
PART_COLUMNS = (PARAMETERS, GRADIENTS, OPTIMIZER, OPTIMIZER_CPU, ACTIVATIONS, BUFFERS)
