"""The schema of a prediction: the memory that a row needs, computed without a GPU."""

from typing import Literal

from pydantic import AliasChoices, Field

from experiments.results.schema import Failure, Memory, Phase, Record
from experiments.results.wording import format_number
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import ExpectedOutcome

PREDICTION_VERSION: Literal[1] = 1
BORDERLINE_SHARE = 0.02
RULE_OF_THUMB_FACTOR = 5

PredictedOutcome = Literal["fits", "borderline", "oom"]


def outcome_for_margin(margin_gib: float, usable_gib: float, completes: bool) -> PredictedOutcome:
    """Return the outcome on a card: borderline if less than BORDERLINE_SHARE of ``usable_gib`` is free or missing.

    It is also borderline if memory is missing, but the training completes with the card's capacity, since it does not
    with a little more. margin_gib: free memory; negative: missing memory. completes: whether the training completes
    with the card's capacity.
    """
    if abs(margin_gib) < BORDERLINE_SHARE * usable_gib or completes != (margin_gib > 0):
        return "borderline"
    return "fits" if completes else "oom"


class PeakParts(Record):
    """The parts of the allocated memory at the peak, GiB on one GPU."""

    params_gib: float = Field(description="the model's weights")
    grads_gib: float = Field(description="gradients")
    optimizer_gib: float = Field(description="the optimizer's state")
    buffers_gib: float = Field(description="buffers that strategy, libraries and cuBLAS keep between steps")
    activations_gib: float = Field(description="everything else: activations, temporary tensors and the batch")
    cache_gib: float = Field(default=0.0, description="key-value cache of a script that generates text")

    @property
    def total_gib(self) -> float:
        return sum(getattr(self, name) for name in type(self).model_fields)


class StepTime(Record):
    """The predicted time of one optimizer step, in seconds.

    The host starts operations while the GPU executes earlier ones. So the times of host and GPU overlap: a step takes
    less than their sum.
    """

    step_s: float = Field(description="time of an optimizer step")
    error_share: float = Field(description="error of the time in both directions, as a share of the time")
    gpu_busy_share: float = Field(
        validation_alias=AliasChoices("gpu_busy_share", "busy_share"),
        description="share of the step in which kernels run on the GPU",
    )
    gpu_busy_share_error: float = Field(
        validation_alias=AliasChoices("gpu_busy_share_error", "gpu_busy_error", "busy_error"),
        description="error of gpu_busy_share, in both directions",
    )
    host_s: float = Field(
        description="time that the host needs to start the operations, and for an optimizer on the CPU"
    )
    cpu_optimizer_s: float = Field(default=0.0, description="time of an optimizer on the CPU, which is part of host_s")
    link_s: float = Field(description="time of the transfers between GPUs")
    device_s: dict[str, float] = Field(description="time of the GPU by family of operations")
    measured_on: str = Field(description="the GPU on which the operations were measured")
    host_is_measured: bool = Field(
        default=False, description="whether the user has measured the host; otherwise, it is the host of measured_on"
    )
    unmeasured_share: float | None = Field(
        default=None,
        description="share of the GPU's time that is estimated from similar operations, because nothing was measured",
    )

    @property
    def words(self) -> str:
        """Return the time with its error: '0.93 s ±15 %'."""
        return f"{format_number(self.step_s)} s ±{100 * self.error_share:.0f} %"

    @property
    def limited_by(self) -> str:
        """Return what limits the step: host, links, an optimizer on the CPU, or a family of operations of the GPU."""
        device_s, starting_s = sum(self.device_s.values()), self.host_s - self.cpu_optimizer_s
        if self.cpu_optimizer_s > max(device_s, starting_s, self.link_s):
            return "optimizer on the CPU"
        if self.link_s > max(device_s, starting_s):
            return "links between GPUs"
        if starting_s > device_s:
            return "host"
        return f"GPU: {max(self.device_s, key=self.device_s.__getitem__)}"


class RowStepTime(StepTime):
    """The predicted time of one optimizer step of a row, with batches of average length."""

    ratio_error_share: float = Field(
        description="used in place of error_share if the time is compared with that of another row on the same card"
    )
    planned_micro_steps: int = Field(description="micro-steps of the whole training, as with --length as-taught")


class Prediction(Record):
    """The predicted memory of one row on one card, per GPU, in GiB (bytes / 1024**3).

    The training code runs on a simulated GPU, and its memory allocations are replayed twice: with unlimited capacity,
    and with the card's. The allocator frees its cache and tries again before it fails. Therefore, a training can
    complete with less memory than it would reserve without a limit.
    """

    prediction_version: Literal[1] = Field(default=PREDICTION_VERSION, description="version of this schema")
    spec: RowSpec = Field(description="specification of the predicted row")
    rank: int = Field(default=0, description="predicted rank, from 0")
    parameters: int = Field(description="parameters of the model, shared tensors counted once")
    trainable_parameters: int = Field(description="parameters that have gradients")
    peak_gib: float = Field(description="maximum allocated memory, with unlimited capacity")
    reserved_gib: float = Field(description="maximum reserved memory, with unlimited capacity")
    at_peak: PeakParts = Field(description="the parts of the peak")
    peak_phase: Phase = Field(description="phase of the peak")
    peak_step: int = Field(description="optimizer step of the peak, from 0")
    optimizer_cpu_gib: float = Field(description="the optimizer's state in host memory")
    host_gib: float | None = Field(
        default=None,
        description="host memory that the row needs for offload, or to run on the CPU; None: it does neither",
    )
    needed_gib: float = Field(description="capacity from which on the training completes")
    usable_gib: float = Field(description="capacity of the card")
    limited_reserved_gib: float = Field(description="maximum reserved memory, with the card's capacity")
    retries: int = Field(description="number of times that the allocator freed its cache, with the card's capacity")
    failure: Failure | None = Field(description="failure with the card's capacity; None: the training completes")
    memory: Memory = Field(description="predicted values of the memory that a run measures, with unlimited capacity")
    tflop_per_sample: float | None = Field(
        default=None, description="1e12 executed floating-point operations per sample, recomputation included"
    )
    time: RowStepTime | None = Field(default=None, description="time of a step; None if it is not predicted")
    versions: dict[str, str] = Field(description="versions of the installed packages, by name")
    elapsed_s: float = Field(description="duration of the prediction")

    @property
    def samples_per_s(self) -> float | None:
        """Return the samples per second over all GPUs; None if the time of a step is not predicted."""
        settings = self.spec.settings
        samples = settings.batch_size * settings.accumulate * settings.world_size
        return samples / self.time.step_s if self.time else None

    @property
    def margin_gib(self) -> float:
        """Return the memory of the card that stays free, GiB; negative: the memory that is missing."""
        return self.usable_gib - self.needed_gib

    @property
    def predicted_outcome(self) -> PredictedOutcome:
        """Return whether the row fits; borderline: the margin is within 2 % of usable_gib, the error of predictions."""
        return outcome_for_margin(self.margin_gib, self.usable_gib, self.failure is None)

    @property
    def likely_outcome(self) -> ExpectedOutcome:
        """Return the more likely outcome, ``fits`` or ``oom``, even for a borderline row."""
        return "oom" if self.failure else "fits"

    @property
    def rule_of_thumb_gib(self) -> float:
        """Return five times the size of the parameters, GiB, the rule of the Slurm guide.

        The rule counts parameters, gradients, the optimizer's two moments and activations once each.
        """
        return RULE_OF_THUMB_FACTOR * self.memory.snapshots[0].params_gib
