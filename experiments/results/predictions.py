"""What a row will take, worked out without a GPU: the schema of a prediction."""

from typing import Literal

from pydantic import Field

from experiments.results.schema import Failure, Memory, Phase, Record
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import ExpectedOutcome

PREDICTION_VERSION: Literal[1] = 1
DOUBT = 0.02
RULE_OF_THUMB = 5

Verdict = Literal["fits", "borderline", "oom"]


class Shares(Record):
    """What the memory at one moment is made of, GiB on one GPU.

    buffers are what strategy, libraries and cuBLAS keep between steps; activations all that is left: activations,
    temporaries, the batch.
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
    """One row on one card, per GPU, GiB (bytes / 1024**3): the training traced with room without end, then replayed.

    peak_gib and reserved_gib are what it takes where there is room; at_peak is what the peak is made of, peak_phase and
    peak_step where it is met. needed_gib is the least that the allocator must be given for the training to get through
    (with retries it can do with less than it would like to reserve). Under the card's limit, usable_gib, it reserves
    limited_reserved_gib with ``retries`` retries, or ends as ``failure`` says.
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
    host_gib: float | None = Field(
        default=None, description="host memory that offload needs; None: nothing to speak of"
    )
    needed_gib: float
    usable_gib: float
    limited_reserved_gib: float
    retries: int
    failure: Failure | None
    memory: Memory = Field(description="as a probe would have measured it, with room without end")
    tflop_per_sample: float | None = None
    versions: dict[str, str]
    elapsed_s: float

    @property
    def margin_gib(self) -> float:
        """What is left of the card, or, negative, what is missing."""
        return self.usable_gib - self.needed_gib

    @property
    def verdict(self) -> Verdict:
        """Whether the row fits; borderline where the margin is within 2% of the card, as predictions may be off."""
        if abs(self.margin_gib) < DOUBT * self.usable_gib:
            return "borderline"
        return "fits" if self.margin_gib > 0 else "oom"

    @property
    def outcome(self) -> ExpectedOutcome:
        """The more likely outcome, also where the verdict is borderline."""
        return "fits" if self.margin_gib >= 0 else "oom"

    @property
    def rule_of_thumb_gib(self) -> float:
        """Five times the model, as the Slurm guide reckons: parameters, gradients, two moments and activations."""
        return RULE_OF_THUMB * self.memory.snapshots[0].params_gib

    @property
    def card_gib(self) -> float:
        """The memory of the whole card."""
        return card_named(self.spec.card).memory_gib
