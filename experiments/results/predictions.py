"""The schema of a prediction: the memory that a row needs, found without a GPU."""

from typing import Literal

from pydantic import Field

from experiments.results.schema import Failure, Memory, Phase, Record
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import ExpectedOutcome

PREDICTION_VERSION: Literal[1] = 1
DOUBT = 0.02
RULE_OF_THUMB = 5

PredictedOutcome = Literal["fits", "borderline", "oom"]


class Shares(Record):
    """The parts of the memory at one moment, GiB on one GPU.

    buffers: what strategy, libraries and cuBLAS keep between steps. activations: all the rest, which is activations,
    temporaries and the batch.
    """

    params_gib: float
    grads_gib: float
    optimizer_gib: float
    buffers_gib: float
    activations_gib: float

    @property
    def total_gib(self) -> float:
        return self.params_gib + self.grads_gib + self.optimizer_gib + self.buffers_gib + self.activations_gib


class Prediction(Record):
    """One row on one card, per GPU, GiB (bytes / 1024**3): a dry-run with unlimited capacity, then replayed.

    peak_gib, reserved_gib: allocated and reserved memory with unlimited capacity. at_peak: the parts of the peak;
    peak_phase, peak_step: when it occurs. needed_gib: the least capacity with which the training completes; with
    retries the allocator manages with less than it would otherwise reserve. With the card's capacity, usable_gib, it
    reserves limited_reserved_gib with ``retries`` retries, or ends with ``failure``.
    """

    prediction_version: Literal[1] = PREDICTION_VERSION
    spec: RowSpec
    parameters: int
    trainable_parameters: int
    peak_gib: float
    reserved_gib: float
    at_peak: Shares
    peak_phase: Phase
    peak_step: int
    optimizer_cpu_gib: float
    host_gib: float | None = Field(default=None, description="host memory that offload needs; None: without offload")
    needed_gib: float
    usable_gib: float
    limited_reserved_gib: float
    retries: int
    failure: Failure | None
    memory: Memory = Field(description="as a probe would measure it, with unlimited capacity")
    tflop_per_sample: float | None = None
    versions: dict[str, str]
    elapsed_s: float

    @property
    def margin_gib(self) -> float:
        """Return the memory of the card that stays free; negative: that is missing."""
        return self.usable_gib - self.needed_gib

    @property
    def predicted_outcome(self) -> PredictedOutcome:
        """Return whether the row fits; borderline if the margin is within 2 % of the card, the error of predictions."""
        if abs(self.margin_gib) < DOUBT * self.usable_gib:
            return "borderline"
        return "fits" if self.margin_gib > 0 else "oom"

    @property
    def likely_outcome(self) -> ExpectedOutcome:
        """Return the more likely outcome, also of a borderline row."""
        return "fits" if self.margin_gib >= 0 else "oom"

    @property
    def rule_of_thumb_gib(self) -> float:
        """Return five times the model, as in the Slurm guide: parameters, gradients, two moments, activations."""
        return RULE_OF_THUMB * self.memory.snapshots[0].params_gib
