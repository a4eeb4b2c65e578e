"""Measure a training in its own process: memory at four points of a step, times of micro-steps, losses, progress."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.results.memory_parts import StepPoint
from experiments.results.schema import (
    PROGRESS_FILE,
    WARM_UP_STEPS,
    Device,
    Memory,
    Phase,
    Progress,
    Speed,
    StageTimestamps,
    StepCounts,
)
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import GIB, write_atomically
from experiments.training.measure.flops import FlopCount
from experiments.training.measure.meters import Meter
from experiments.training.measure.schedule import Schedule, Timing
from experiments.training.measure.snapshots import MemoryRecorder, takes_snapshots
from experiments.training.measure.step_profile import StepProfile
from experiments.training.measure.step_timer import StepTimer

PROGRESS_INTERVAL_S = 0.5
TERA = 1e12


class Probe:
    """Measures a training without changing its computation. The engine calls one method at each point of a step.

    phase, step and micro_step are the current position of the training; micro_step counts from 0 within each step.
    micro_steps is the number of all completed micro-steps. All measurements stay available after a failure. profile:
    profiles additional optimizer steps after the timed steps; None: no profile.
    """

    def __init__(
        self, spec: RowSpec, device: Device, meter: Meter, out: Path, profile: StepProfile | None = None
    ) -> None:
        self.spec, self.device, self.meter, self.profile = spec, device, meter, profile
        self.step = self.micro_step = self.micro_steps = 0
        self.max_tokens = self.parameters = self.trainable_parameters = 0
        self.param_bytes_by_gpu: tuple[int, ...] = ()
        self.schedule: Schedule | None = None
        self.weights_commit: str | None = None
        self.data_commit: str | None = None
        self.resumed_at_step: int | None = None
        self._build_began_at = time.time()
        self._training_began_at: float | None = None
        self._steady_from: float | None = None
        self._steady_until: float | None = None
        self._out = out
        self._recorder = MemoryRecorder(meter)
        self._losses: list[torch.Tensor] = []
        self._tokens: list[int] = []
        self._timer = StepTimer(device.kind == "cuda")
        self._flop_counting = ExitStack()
        self._flops: FlopCount | None = None
        self._timed_micro_steps: int | None = None
        self._training_timer_start_s = self._progress_written_s = 0.0
        self._micro_step_began = self._micro_step_s = 0.0

    @property
    def phase(self) -> Phase:
        """The current phase of the training."""
        return self._recorder.phase

    def set_model(self, model: torch.nn.Module, optimizers: Callable[[], Iterable[Any]]) -> None:
        """Set the model after it has been built. optimizers: returns the model's optimizers, once they exist."""
        parameters = list(model.parameters())
        self.parameters = sum(map(count_weights, parameters))
        self.trainable_parameters = sum(count_weights(weights) for weights in parameters if weights.requires_grad)
        self._recorder.set_model(parameters, optimizers)

    def begin_build(self) -> None:
        """Record that model and data are now built. The time before this call counts as the start of the process."""
        self._build_began_at = time.time()
        self.write_progress(at_once=True)

    def start(self, schedule: Schedule) -> None:
        """Record that the training begins. The time before this call counts as loading."""
        self.schedule = schedule
        self._training_began_at = time.time()
        self._training_timer_start_s = time.perf_counter()
        self._timer.record()

    def before_forward(self, batch: dict[str, torch.Tensor]) -> None:
        """Begin a micro-step on ``batch``."""
        self._micro_step_began = time.monotonic()
        self.enter_phase("forward")
        self.meter.track("batch", batch.values())
        self.max_tokens = max(self.max_tokens, batch.get("attention_mask", batch["input_ids"]).shape[1])
        self._tokens.append(1 if "pixel_values" in batch else batch["input_ids"].numel())
        self._take_snapshot("before forward")
        if self.micro_steps == 0:
            if self.spec.settings.compile:  # else blocks that run while FlopCount is active would never be compiled
                self._flop_counting.enter_context(torch.compiler.set_stance("force_eager"))
            self._flops = self._flop_counting.enter_context(FlopCount())

    def after_forward(self, loss: torch.Tensor) -> None:
        """End the forward pass, which returned ``loss``."""
        self._take_snapshot("after forward")
        self._losses.append(loss.detach())

    def before_backward(self) -> None:
        """Begin the backward pass."""
        self.enter_phase("backward")

    def after_backward(self) -> None:
        """End the backward pass."""
        self._take_snapshot("after backward")

    def before_optimizer_step(self) -> None:
        """Begin the optimizer step."""
        self.enter_phase("optimizer step")

    def after_batch(self) -> bool:
        """End a micro-step; return True if the training has run long enough."""
        assert self.schedule is not None
        if self.micro_steps == 0:
            self._flop_counting.close()
        stepped = self.micro_step + 1 == self.spec.settings.accumulate
        if stepped:
            self._take_snapshot("after optimizer step")
        self._timer.record()
        self.meter.end_micro_step()
        self._micro_step_s = time.monotonic() - self._micro_step_began
        self.micro_steps += 1
        self.micro_step = 0 if stepped else self.micro_step + 1
        self.step += stepped
        self._record_steady_steps(stepped)
        self.write_progress()
        return self._may_end(stepped)

    def _record_steady_steps(self, stepped: bool) -> None:
        """Record when the warm-up ended, and when the last step of the time measurement ended."""
        if not stepped or self.step < WARM_UP_STEPS or self._timed_micro_steps is not None:
            return
        now = time.time()
        if self.step == WARM_UP_STEPS:
            self._steady_from = now
        self._steady_until = now

    def _may_end(self, stepped: bool) -> bool:
        """Return True if the training may end now. If enough steps remain, steps are profiled before the end."""
        assert self.schedule is not None
        if self.profile is None:
            return self._all_ranks_may_end(stepped)
        if self._timed_micro_steps is not None:
            return stepped and self.profile.step()
        remaining = self.schedule.total - self.schedule.done - self.micro_steps
        needed = self.profile.STEPS * self.spec.settings.accumulate
        may_end = remaining != needed and self._all_ranks_may_end(stepped)
        if remaining == needed or (may_end and remaining > needed):
            self._timed_micro_steps = self.micro_steps
            self.profile.start()
            return False
        return may_end

    def _all_ranks_may_end(self, stepped: bool) -> bool:
        """Return True if all ranks have run long enough.

        Only after an optimizer step, the host waits for the GPU to read the times. In other micro-steps, a wait would
        make the training slower.
        """
        assert self.schedule is not None
        if not self.schedule.minimum <= self.micro_steps < self.schedule.last_micro_step:
            return self.micro_steps >= self.schedule.last_micro_step
        if not stepped:
            return False
        may_end = self.device.shared or self.schedule.may_end(self._timer.intervals_s())
        return all_ranks_agree(may_end, self.device) if self.spec.settings.ranks > 1 else may_end

    def enter_phase(self, phase: Phase) -> None:
        """Begin ``phase``. If micro-steps are long, write the progress at once, so that telemetry has the new phase."""
        self._recorder.begin(phase)
        self.write_progress(at_once=self._micro_step_s >= PROGRESS_INTERVAL_S)

    def timestamps(self) -> StageTimestamps:
        """Return the times at which the stages of this process began. The training ends at the time of the call."""
        now = time.time()
        return StageTimestamps(
            started_at=self._build_began_at,
            began_at=self._training_began_at or now,
            ended_at=now,
            steady_from=self._steady_from,
            steady_until=self._steady_until,
        )

    def close(self) -> None:
        """Stop counting floating-point operations. Call this also after a failure in the first micro-step."""
        self._flop_counting.close()

    def memory(self) -> Memory:
        """Return the memory recorded so far, in GiB."""
        by_gpu = tuple(size / GIB for size in self.param_bytes_by_gpu)
        return self._recorder.memory().model_copy(update={"params_by_gpu_gib": by_gpu})

    def losses(self) -> tuple[float, ...]:
        """Return the loss of each completed forward pass."""
        return tuple(torch.stack([loss.float() for loss in self._losses]).tolist()) if self._losses else ()

    def speed(self) -> Speed | None:
        """Return times and rates of the micro-steps; None on a shared GPU, and before the first micro-step has ended.

        Floating-point operations are counted in the first micro-step only. For texts, the number of operations in a
        timed micro-step is assumed to be proportional to its number of tokens, including padding.
        """
        if self.schedule is None or not self.micro_steps or self.device.shared:
            return None
        settings = self.spec.settings
        timing = Timing.from_times(self._timer.intervals_s()[: self._timed_micro_steps], settings.accumulate)
        step_s = timing.step_s(settings.accumulate)
        flop_per_sample = self._flops.total / settings.batch_size if self._flops and self._flops.total else None
        rank_samples_per_s = settings.batch_size * settings.accumulate / step_s
        timed_tokens = self._tokens[: self._timed_micro_steps or self.micro_steps][-timing.micro_step_count :]
        tflops_per_s = None
        if flop_per_sample:
            tokens_relative_to_first = median(timed_tokens) / self._tokens[0]
            tflops_per_s = flop_per_sample * rank_samples_per_s / TERA * tokens_relative_to_first
        return Speed(
            optimizer_steps=self.step,
            micro_steps=self.micro_steps,
            planned_micro_steps=self.schedule.total,
            measured_micro_steps=timing.micro_step_count,
            micro_step_s=median(timing.without_optimizer_step_s or timing.with_optimizer_step_s),
            step_s=step_s,
            spread=timing.spread,
            samples_per_s=settings.global_batch_size / step_s,
            tflop_per_sample=flop_per_sample / TERA if flop_per_sample else None,
            tflops_per_s=tflops_per_s,
            peak_share=peak_share(tflops_per_s, self.device, settings),
            train_s=time.perf_counter() - self._training_timer_start_s,
            **(self.profile.shares if self.profile else {}),
        )

    def steps(self) -> StepCounts | None:
        """Return the numbers of steps on a shared GPU; None on other devices, because ``speed`` returns them there."""
        if self.schedule is None or not self.device.shared:
            return None
        return StepCounts(
            optimizer_steps=self.step, micro_steps=self.micro_steps, planned_micro_steps=self.schedule.total
        )

    def write_progress(self, *, at_once: bool = False) -> None:
        """Write progress.json: always if ``at_once`` is True, otherwise at most twice a second."""
        if not at_once and time.monotonic() - self._progress_written_s < PROGRESS_INTERVAL_S:
            return
        self._progress_written_s = time.monotonic()
        planned = self.schedule.maximum if self.schedule else 0
        elapsed_s = time.perf_counter() - self._training_timer_start_s
        progress = Progress(
            phase=self.phase,
            step=self.step,
            micro_steps=self.micro_steps,
            planned_micro_steps=planned,
            allocated_gib=self.meter.allocated() / GIB,
            memory=self.memory(),
            device=self.device,
            left_s=elapsed_s / self.micro_steps * max(0, planned - self.micro_steps) if self.micro_steps else None,
        )
        write_atomically(self._out / PROGRESS_FILE, progress.model_dump_json())

    def _take_snapshot(self, point: StepPoint) -> None:
        if takes_snapshots(self.step) or self._timed_micro_steps is not None:
            self._recorder.take_snapshot(self.step, self.micro_step, point)


def all_ranks_agree(vote: bool, device: Device) -> bool:
    """Return True if every rank votes True. All ranks call this function at the same step, so that all end together."""
    votes = torch.tensor(vote, dtype=torch.int32, device=device.kind)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes.item())


def peak_share(tflops_per_s: float | None, device: Device, settings: Settings) -> float | None:
    """Return ``tflops_per_s`` as a share of the device's dense peak rate for the data type of the matrix products.

    Returns None if the peak rate is unknown, or if quantization mixes data types.
    """
    if tflops_per_s is None or device.card is None or settings.quantization:
        return None
    data_type = "fp32" if settings.precision == "32-true" else "bf16"
    if data_type == "fp32" and torch.backends.cuda.matmul.allow_tf32:
        data_type = "tf32"
    peak = card_named(device.card).peak_tflops.get(data_type)
    return tflops_per_s / peak if peak else None


def count_weights(parameter: torch.nn.Parameter) -> int:
    """Return the number of weights in a parameter. A byte contains two 4-bit weights."""
    return parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
