"""Measures a training from inside: memory at four points of a step, times of micro-steps, losses, where it stands."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.results.schema import PROGRESS_FILE, Device, Memory, Phase, Point, Progress, Snapshot, Speed
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import GIB, write_atomically
from experiments.training.measure.flops import FlopCount
from experiments.training.measure.meters import Meter, optimizer_tensors, parameter_tensors, storage_bytes
from experiments.training.measure.schedule import Schedule, Timing
from experiments.training.measure.step_profile import StepProfile

FIRST_SNAPSHOTS = 2
SNAPSHOT_EVERY = 50
PROGRESS_EVERY_S = 0.5
TERA = 1e12


class Clock:
    """Marks moments of the device's work without waiting for it: CUDA events, or the wall clock on a CPU."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._marks: list[Any] = []

    def mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def intervals_s(self) -> list[float]:
        """Seconds between consecutive marks; waits for the device to reach the last one."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._cuda:
            return [after - before for before, after in pairs]
        self._marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class Probe:
    """What a row is seen doing. The engine calls it at the points of a step; it never touches the training itself.

    State that outlives a failure: phase, step and micro_step where the training stands, memory and losses so far.
    ``profile``, when given, has more optimizer steps after those that are timed.
    """

    def __init__(
        self, spec: RowSpec, device: Device, meter: Meter, out: Path, profile: StepProfile | None = None
    ) -> None:
        self.spec, self.device, self.meter, self.profile = spec, device, meter, profile
        self.phase: Phase = "load"
        self.step = self.micro_step = self.micro_steps = 0
        self.max_tokens = self.parameters = self.trainable_parameters = 0
        self.schedule: Schedule | None = None
        self.weights_commit: str | None = None
        self.data_commit: str | None = None
        self.resumed_at_step: int | None = None
        self._out = out
        self._snapshots: list[Snapshot] = []
        self._peaks: dict[Phase, int] = {}
        self._reserved: int | None = None
        self._losses: list[torch.Tensor] = []
        self._clock = Clock(device.kind == "cuda")
        self._counting = ExitStack()
        self._flops: FlopCount | None = None
        self._parameters: list[torch.nn.Parameter] = []
        self._optimizers: Callable[[], Iterable[Any]] = tuple
        self._timed: int | None = None
        self._started = self._written = 0.0

    def watch(self, model: torch.nn.Module, optimizers: Callable[[], Iterable[Any]]) -> None:
        """Tell the probe whose memory it measures, once the model is built."""
        self._parameters, self._optimizers = list(model.parameters()), optimizers
        self.parameters = sum(map(count_weights, self._parameters))
        self.trainable_parameters = sum(count_weights(one) for one in self._parameters if one.requires_grad)
        self.meter.watch("params", self._parameters)

    def start(self, schedule: Schedule) -> None:
        """Training begins: everything up to here was loading."""
        self.schedule = schedule
        self._started = time.perf_counter()
        self._clock.mark()

    def before_forward(self, batch: dict[str, torch.Tensor]) -> None:
        self.enter("forward")
        self.meter.watch("batch", batch.values())
        self.max_tokens = max(self.max_tokens, batch["input_ids"].shape[1])
        self._snap("before forward")
        if self.micro_steps == 0:
            self._flops = self._counting.enter_context(FlopCount())

    def after_forward(self, loss: torch.Tensor) -> None:
        """The forward pass ended with ``loss``; the last step's gradients are still there."""
        self._snap("after forward")
        self._losses.append(loss.detach())

    def before_backward(self) -> None:
        self.enter("backward")

    def after_backward(self) -> None:
        self._snap("after backward")

    def before_optimizer_step(self) -> None:
        self.enter("optimizer step")

    def after_batch(self) -> bool:
        """A micro-step is over; True when the training has run long enough."""
        assert self.schedule is not None
        if self.micro_steps == 0:
            self._counting.close()
        stepped = self.micro_step + 1 == self.spec.settings.accumulate
        if stepped:
            self._snap("after optimizer step")
        self._clock.mark()
        self.micro_steps += 1
        self.micro_step = 0 if stepped else self.micro_step + 1
        self.step += stepped
        self.write_progress()
        return self._ends(stepped)

    def _ends(self, stepped: bool) -> bool:
        """Whether the training may end here, once the profile has had its step where there is one to be had."""
        assert self.schedule is not None
        if self.profile is None:
            return self._enough()
        if self._timed is not None:
            return stepped and self.profile.step()
        left = self.schedule.taught - self.schedule.done - self.micro_steps
        needed = self.profile.STEPS * self.spec.settings.accumulate
        if left >= needed and (left == needed or self._enough()):
            self._timed = self.micro_steps
            self.profile.start()
            return False
        return self._enough()

    def _enough(self) -> bool:
        """Whether this rank and all others have run long enough."""
        assert self.schedule is not None
        if not self.schedule.least <= self.micro_steps < self.schedule.most:
            return self.micro_steps >= self.schedule.most
        enough = self.schedule.enough(self._clock.intervals_s())
        return agreed(enough, self.device) if self.spec.settings.ranks > 1 else enough

    def enter(self, phase: Phase) -> None:
        """Move on to ``phase``; the peak of the one before is kept."""
        self._keep_peaks()
        self.meter.begin(phase)
        self.phase = phase
        self.write_progress()

    def close(self) -> None:
        """Stop counting operations, also when the first micro-step failed."""
        self._counting.close()

    def memory(self) -> Memory:
        """Memory so far, GiB."""
        self._keep_peaks()
        return Memory(
            snapshots=tuple(self._snapshots),
            peak_gib=max(self._peaks.values()) / GIB,
            peak_by_phase_gib={phase: peak / GIB for phase, peak in self._peaks.items()},
            reserved_gib=None if self._reserved is None else self._reserved / GIB,
            host_peak_gib=resident_peak_gib(),
        )

    def losses(self) -> tuple[float, ...]:
        """The loss of each micro-step that reached its backward pass."""
        return tuple(torch.stack([loss.float() for loss in self._losses]).tolist()) if self._losses else ()

    def speed(self) -> Speed | None:
        """Times of the micro-steps; None before there are any."""
        if self.schedule is None or not self.micro_steps:
            return None
        settings = self.spec.settings
        timing = Timing.of(self._clock.intervals_s()[: self._timed], settings.accumulate)
        step_s = timing.step_s(settings.accumulate)
        flop = self._flops.total / settings.batch_size if self._flops and self._flops.total else None
        own_samples_per_s = settings.batch_size * settings.accumulate / step_s
        rate = flop * own_samples_per_s / TERA if flop else None
        return Speed(
            optimizer_steps=self.step,
            micro_steps=self.micro_steps,
            planned_micro_steps=self.schedule.taught,
            measured_micro_steps=timing.measured,
            micro_step_s=median(timing.plain_s or timing.stepping_s),
            step_s=step_s,
            spread=timing.spread,
            samples_per_s=settings.global_batch_size / step_s,
            tflop_per_sample=flop / TERA if flop else None,
            tflops_per_s=rate,
            peak_share=peak_share(rate, self.device, settings),
            train_s=time.perf_counter() - self._started,
            **(self.profile.shares if self.profile else {}),
        )

    def write_progress(self, *, now: bool = False) -> None:
        """Write progress.json, at most twice a second unless ``now``."""
        if not now and time.monotonic() - self._written < PROGRESS_EVERY_S:
            return
        self._written = time.monotonic()
        planned = self.schedule.most if self.schedule else 0
        spent = time.perf_counter() - self._started
        progress = Progress(
            phase=self.phase,
            step=self.step,
            micro_steps=self.micro_steps,
            planned_micro_steps=planned,
            allocated_gib=self.meter.allocated() / GIB,
            memory=self.memory(),
            device=self.device,
            left_s=spent / self.micro_steps * (planned - self.micro_steps) if self.micro_steps else None,
        )
        write_atomically(self._out / PROGRESS_FILE, progress.model_dump_json())

    def _keep_peaks(self) -> None:
        self._peaks[self.phase] = max(self._peaks.get(self.phase, 0), self.meter.peak())
        if (reserved := self.meter.peak_reserved()) is not None:
            self._reserved = max(self._reserved or 0, reserved)

    def _snap(self, point: Point) -> None:
        if self.step >= FIRST_SNAPSHOTS and self.step % SNAPSHOT_EVERY and self._timed is None:
            return
        self._keep_peaks()
        device = self._parameters[0].device.type
        kept = [tensor for optimizer in self._optimizers() for tensor in optimizer_tensors(optimizer)]
        weights = [tensor for one in self._parameters for tensor in parameter_tensors(one)]
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        on_device = [tensor for tensor in kept if tensor.device.type == device]
        self.meter.watch("params", weights)
        self.meter.watch("grads", gradients)
        self.meter.watch("optimizer", on_device)
        params, grads, optimizer = map(storage_bytes, (weights, gradients, on_device))
        allocated = self.meter.allocated()
        self._snapshots.append(
            Snapshot(
                step=self.step,
                micro_step=self.micro_step,
                point=point,
                params_gib=params / GIB,
                grads_gib=grads / GIB,
                optimizer_gib=optimizer / GIB,
                optimizer_cpu_gib=storage_bytes(tensor for tensor in kept if tensor.device.type != device) / GIB,
                activations_gib=max(0, allocated - params - grads - optimizer) / GIB,
                allocated_gib=allocated / GIB,
                peak_gib=max(self._peaks.values()) / GIB,
                reserved_gib=None if self._reserved is None else self._reserved / GIB,
            )
        )


def agreed(enough: bool, device: Device) -> bool:
    """True when every rank says so, for all must end at the same step."""
    votes = torch.tensor(enough, dtype=torch.int32, device=device.kind)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes.item())


def peak_share(tflops_per_s: float | None, device: Device, settings: Settings) -> float | None:
    """The share of the device's dense peak for the type of the matrix products; None where that is unknown or mixed."""
    if tflops_per_s is None or device.card is None or settings.quantization:
        return None
    kind = "fp32" if settings.precision == "32-true" else "bf16"
    if kind == "fp32" and torch.backends.cuda.matmul.allow_tf32:
        kind = "tf32"
    peak = card_named(device.card).peak_tflops.get(kind)
    return tflops_per_s / peak if peak else None


def count_weights(parameter: torch.nn.Parameter) -> int:
    """Weights in a parameter; 4-bit ones are packed two to a byte."""
    return parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)


def resident_peak_gib() -> float:
    """The most memory that this process was resident in so far, GiB."""
    with open("/proc/self/status") as lines:
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return kib / 2**20
