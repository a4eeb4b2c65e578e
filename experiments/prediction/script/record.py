"""Schema of the prediction of a training script."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from experiments.results.predictions import PeakParts, PredictedOutcome, StepTime, outcome_for_margin
from experiments.results.schema import Failure, Phase, Record

TraceEnd = Literal["stopped", "ended", "time limit"]
VERSION: Literal[1] = 1
SCRIPT_FAILED = "the script itself failed with {}; its output is above"


class CardPrediction(Record):
    """Whether the training fits one card. Memory in GiB."""

    card: str = Field(description="name in cards.yaml")
    usable_gib: float = Field(description="capacity of the card")
    needed_gib: float = Field(description="capacity from which on the training completes")
    reserved_gib: float = Field(description="maximum reserved memory, with the card's capacity")
    retries: int = Field(description="number of times that the allocator freed its cache, with the card's capacity")
    failure: Failure | None = Field(description="the failure with the card's capacity; None: the training completes")
    time: StepTime | None = Field(
        default=None, description="time of the last traced optimizer step; None if it is not predicted"
    )

    @property
    def margin_gib(self) -> float:
        """Return the free memory of the card; negative if memory is missing."""
        return self.usable_gib - self.needed_gib

    @property
    def outcome(self) -> PredictedOutcome:
        """Return whether the training fits; borderline if the margin is within the error of predictions."""
        return outcome_for_margin(self.margin_gib, self.usable_gib, self.failure is None)


class PhaseStart(Record):
    """A phase and its start in the timeline, from 0 to 1."""

    at: float = Field(description="share of the log that precedes the phase")
    phase: Phase = Field(description="phase that begins")


class ModuleMemory(Record):
    """Memory at the peak that belongs to one module and was allocated in one phase."""

    module: str = Field(description="name of the module that has the parameter or ran; empty: outside of all modules")
    phase: Phase = Field(description="phase in which the memory was allocated")
    category: str = Field(description="kind of memory, such as params or activations")
    size_gib: float = Field(description="memory in GiB (bytes / 1024**3)")


class LineMemory(Record):
    """Memory at the peak that one line of the script allocated, directly or in a function that it called."""

    line: str = Field(
        description="FILE:LINE, relative to the script's folder; empty: before the first line of the script"
    )
    category: str = Field(description="kind of memory, such as params or activations")
    size_gib: float = Field(description="memory in GiB (bytes / 1024**3)")


class ModuleLineMemory(Record):
    """Memory of one category at the peak, allocated by one line of the script in one module."""

    category: str = Field(description="kind of memory, such as params or activations")
    module: str = Field(description="name of the module, with * for layer numbers; empty: outside of all modules")
    line: str = Field(
        description="FILE:LINE, relative to the script's folder; empty: before the first line of the script"
    )
    size_gib: float = Field(description="memory in GiB (bytes / 1024**3)")


class ScriptPrediction(Record):
    """Memory of one GPU of one rank of a script, for cards with the same kernels. Memory in GiB (bytes / 1024**3)."""

    script_prediction_version: Literal[1] = Field(default=VERSION, description="version of this schema")
    rank: int = Field(description="rank that was traced")
    ranks: int = Field(description="number of ranks of the training")
    gpu: int = Field(default=0, description="number of the rank's GPU that has this memory, from 0")
    gpus: int = Field(default=1, description="number of GPUs of each rank")
    model: str = Field(description="class of the model; empty: no model was found")
    sample: str = Field(default="", description="what a sample is, such as a text of 512 tokens; empty: unknown")
    parameters: int = Field(description="parameters of the model, shared tensors counted once")
    trainable_parameters: int = Field(description="parameters that have gradients")
    optimizers: tuple[str, ...] = Field(description="classes of the optimizers that took steps")
    steps: int = Field(description="optimizer steps that were traced")
    ended: TraceEnd = Field(
        description="stopped: after enough steps; ended: the script ended; time limit: the trace took too long"
    )
    peak_gib: float = Field(description="maximum allocated memory, with unlimited capacity")
    reserved_gib: float = Field(description="maximum reserved memory, with unlimited capacity")
    at_peak: PeakParts = Field(description="the parts of the peak")
    peak_phase: Phase = Field(description="phase of the peak")
    peak_step: int = Field(description="optimizer step of the peak, from 0")
    host_gib: float = Field(description="maximum memory of tensors on the host")
    cards: tuple[CardPrediction, ...] = Field(description="whether the training fits, for each card")
    timeline_gib: tuple[float, ...] = Field(description="maximum allocated memory in each of equal parts of the log")
    phases: tuple[PhaseStart, ...] = Field(description="phases in the timeline")
    modules: tuple[ModuleMemory, ...] = Field(description="allocations that exist at the peak, largest first")
    lines: tuple[LineMemory, ...] = Field(description="the same allocations by line of the script, largest first")
    blocks: tuple[ModuleLineMemory, ...] = Field(
        description="the whole peak by category, module and line, largest first"
    )
    notes: tuple[str, ...] = Field(description="what was made up, and effects that the prediction does not model")
    time_unknown: str = Field(
        default="", description="why the time of a step is unknown on every card; empty: it is known"
    )
    versions: dict[str, str] = Field(description="versions of the packages that were used")
    elapsed_s: float = Field(description="time that the trace took, imports of the script included")


def smallest_card(predictions: Sequence[ScriptPrediction]) -> str | None:
    """Return the card with the least memory on which every traced rank fits all its GPUs; None if there is none."""
    all_cards = [card for prediction in predictions for card in prediction.cards]
    not_fitting = {card.card for card in all_cards if card.outcome != "fits"}
    fitting = [card for card in all_cards if card.card not in not_fitting]
    return min(fitting, key=lambda card: card.usable_gib).card if fitting else None
