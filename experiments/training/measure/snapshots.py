"""Record the memory of a training: the peak of each phase, and snapshots by kind of tensor at points of a step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from experiments.results.memory_parts import StepPoint
from experiments.results.schema import Memory, Phase, Snapshot
from experiments.system.files import GIB
from experiments.training.measure.meters import (
    Meter,
    optimizer_tensors,
    parameter_tensors,
    resident_peak_gib,
    storage_bytes,
)

FIRST_STEPS_WITH_SNAPSHOTS = 2
"""Number of steps at the start of a training that have snapshots."""
SNAPSHOT_INTERVAL_STEPS = 50
"""Each step whose number is a multiple of this interval also has snapshots."""


class MemoryRecorder:
    """Recorder of the memory of a training. ``phase`` is the current phase of the training."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.phase: Phase = "load"
        self._snapshots: list[Snapshot] = []
        self._peaks: dict[Phase, int] = {}
        self._reserved: int | None = None
        self._parameters: list[torch.nn.Parameter] = []
        self._optimizers: Callable[[], Iterable[Any]] = tuple

    def set_model(self, parameters: list[torch.nn.Parameter], optimizers: Callable[[], Iterable[Any]]) -> None:
        """Set the model's parameters. optimizers: returns the model's optimizers, once they exist."""
        self._parameters, self._optimizers = parameters, optimizers
        self.meter.track("params", parameters)

    def begin(self, phase: Phase) -> None:
        """Record the peak of the previous phase, and begin ``phase``."""
        self._record_peak()
        self.meter.begin(phase)
        self.phase = phase

    def take_snapshot(self, step: int, micro_step: int, point: StepPoint) -> None:
        """Record the memory by kind of tensor, in GiB, at a point of a micro-step."""
        self._record_peak()
        device = self._parameters[0].device.type
        state = [tensor for optimizer in self._optimizers() for tensor in optimizer_tensors(optimizer)]
        weights = [tensor for parameter in self._parameters for tensor in parameter_tensors(parameter)]
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        state_on_device = [tensor for tensor in state if tensor.device.type == device]
        self.meter.track("params", weights)
        self.meter.track("grads", gradients)
        self.meter.track("optimizer", state_on_device)
        params, grads, optimizer = map(storage_bytes, (weights, gradients, state_on_device))
        allocated = self.meter.allocated()
        self._snapshots.append(
            Snapshot(
                step=step,
                micro_step=micro_step,
                point=point,
                params_gib=params / GIB,
                grads_gib=grads / GIB,
                optimizer_gib=optimizer / GIB,
                optimizer_cpu_gib=storage_bytes(tensor for tensor in state if tensor.device.type != device) / GIB,
                activations_gib=max(0, allocated - params - grads - optimizer) / GIB,
                allocated_gib=allocated / GIB,
                peak_gib=max(self._peaks.values()) / GIB,
                reserved_gib=self._reserved_gib(),
            )
        )

    def memory(self) -> Memory:
        """Return the memory recorded so far, in GiB."""
        self._record_peak()
        return Memory(
            snapshots=tuple(self._snapshots),
            peak_gib=max(self._peaks.values()) / GIB,
            peak_by_phase_gib={phase: peak / GIB for phase, peak in self._peaks.items()},
            reserved_gib=self._reserved_gib(),
            host_peak_gib=resident_peak_gib(),
        )

    def _record_peak(self) -> None:
        self._peaks[self.phase] = max(self._peaks.get(self.phase, 0), self.meter.peak())
        if (reserved := self.meter.peak_reserved()) is not None:
            self._reserved = max(self._reserved or 0, reserved)

    def _reserved_gib(self) -> float | None:
        return None if self._reserved is None else self._reserved / GIB


def takes_snapshots(step: int) -> bool:
    """Return True if snapshots are taken in an optimizer step, counted from 0: in the first two and every 50th."""
    return step < FIRST_STEPS_WITH_SNAPSHOTS or step % SNAPSHOT_INTERVAL_STEPS == 0
