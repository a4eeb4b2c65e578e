"""Read the published times of training steps, and the operations of these trainings."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from experiments.prediction.times.phase import RecordedPhase
from experiments.suites.cards import Card, card_named
from experiments.suites.yaml_schema import read_yaml
from tests.benchmarks.prediction.published import FOLDER

LABELS, OPERATIONS = FOLDER / "times.yaml", FOLDER / "time_operations.jsonl.gz"
PASSES = ("forward", "backward")


class Stated(BaseModel):
    """A part of times.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Board(Stated):
    """A measured board. goal: largest accepted mean error. peak_tflops: of this board, if the catalog has another."""

    device: str
    goal: float | None = None
    peak_tflops: dict[str, float] | None = None


class Model(Stated):
    """A trained model: its configuration and its class in transformers. excluded: why it is not predicted."""

    config: str = ""
    model_class: str = ""
    excluded: str = ""


class Label(Stated):
    """A published measurement. Times in ms; the errors of the source's own estimators in percent."""

    card: str
    model: str
    seq: int
    batch: int
    forward_ms: float
    backward_ms: float
    neusight_percent: float
    roofline_percent: float

    @property
    def training(self) -> str:
        """Return the name of the training, which does not depend on the card."""
        return f"{self.model}-{self.seq}-{self.batch}"

    @property
    def total_ms(self) -> float:
        return self.forward_ms + self.backward_ms


class LinearLayer(Stated):
    """A linear layer with a bias, whose forward pass the source measured alone. rows: tokens; columns: outputs."""

    card: str
    rows: int
    columns: int
    depth: int
    ms: float


class ForwardOperations(Stated):
    """The operations of a label's forward pass, each measured alone by the source: of a layer, and after the layers."""

    card: str
    training: str
    layers: int
    layer_ms: tuple[float, ...]
    head_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        return self.layers * sum(self.layer_ms) + sum(self.head_ms)


class PublishedTimes(Stated):
    """The contents of times.yaml."""

    source: str
    cards: dict[str, Board]
    models: dict[str, Model]
    labels: tuple[Label, ...]
    linear_layers: tuple[LinearLayer, ...]
    forward_operations: tuple[ForwardOperations, ...]

    def card(self, name: str) -> Card:
        """Return the card of the catalog with the peak rates of the measured board."""
        peak_tflops = self.cards[name].peak_tflops
        return card_named(name).model_copy(update={"peak_tflops": peak_tflops} if peak_tflops else {})

    @property
    def predicted(self) -> list[Label]:
        """Return the labels of the models that are predicted."""
        return [label for label in self.labels if not self.models[label.model].excluded]


class TrainingOperations(BaseModel):
    """The operations of a training's forward and backward pass, each with the number of its executions.

    reserved_gib: memory that the allocator has reserved at the end of an iteration.
    """

    training: str
    model: str
    phases: dict[str, dict[str, int]]
    allocated_gib: dict[str, float]
    reserved_gib: float

    def recorded(self, name: str) -> RecordedPhase:
        """Return the pass called ``name``: forward or backward."""
        assert name in PASSES
        return RecordedPhase("forward" if name == "forward" else "backward", 0, self.phases[name])

    def uncleared_gib(self, card: Card) -> float:
        """Return how much freed memory the forward pass needs again before the driver has had time to clear it.

        Memory that the iteration before has reserved is freed at once, but cleared in the background. Only the rest of
        the card is available at once.
        """
        needed = self.reserved_gib + self.allocated_gib["forward"] + card.context_gib
        return max(0.0, needed - card.memory_gib)


def published_times() -> PublishedTimes:
    """Return the published times."""
    return PublishedTimes.model_validate(read_yaml(LABELS))


def read_operations(path: Path = OPERATIONS) -> dict[str, TrainingOperations]:
    """Return the recorded operations by training."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return {one.training: one for one in map(TrainingOperations.model_validate_json, lines)}


def write_operations(found: Mapping[str, TrainingOperations], path: Path = OPERATIONS) -> None:
    """Write the recorded operations; the same operations give the same bytes."""
    text = "".join(json.dumps(one.model_dump()) + "\n" for one in found.values())
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
