"""Find what fits a card: the largest batch of a row, and changes that make the row fit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from experiments.errors import InputError
from experiments.prediction.batches import Batches
from experiments.prediction.custom_spec import OPTIMIZER_STEPS, lora
from experiments.results.predictions import BORDERLINE_SHARE, Prediction
from experiments.results.schema import Record
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import validate

LORA_R = 16
FSDP_GPUS = (2, 4, 8)

Predict = Callable[[Sequence[RowSpec]], list[Prediction]]
C = TypeVar("C")
A = TypeVar("A")


class Change(NamedTuple):
    """One change of a row's settings, and its cost."""

    name: str
    cost: str
    settings: dict[str, Any]


class Attempt(Record):
    """The prediction of a row with one change.

    prediction: None if the row cannot be trained with the change; reason: why not.
    """

    change: str
    cost: str
    prediction: Prediction | None
    reason: str = ""


class Fit(Record):
    """What fits on the row's card.

    largest: the row with the largest batch that fits. likely: the row with the largest batch that probably fits,
    including borderline ones. Each is None if even a batch of 1 does not qualify. Batches above 4096 are not tried.
    """

    asked: Prediction
    largest: Prediction | None
    likely: Prediction | None
    changes: tuple[Attempt, ...] = Field(description="cheapest first; empty for a row that fits unchanged")
    pairs: tuple[Attempt, ...] = Field(
        default=(),
        description="pairs of changes that fit, if no single one does: those with the cheapest dearer change",
    )


def fit(spec: RowSpec, predict: Predict) -> Fit:
    """Return the largest batch of ``spec`` and, if it does not fit, the changes that help, cheapest first.

    Pairs of changes are tried if no single change fits.

    The order of cost is: changes that do not affect the result of the training (accumulation), then changes of the
    arithmetic (precision), the time (checkpointing), the optimizer (8 bit, SGD), the trained weights (LoRA), and
    finally slow host memory and more GPUs.
    """
    batches = Batches(
        spec.settings.batch_size, lambda sizes: predict([changed(spec, batch_size=size) for size in sizes])
    )
    asked = batches.prediction(spec.settings.batch_size)
    largest = batches.last(BORDERLINE_SHARE * asked.usable_gib)
    likely = batches.last(0.0)
    offered = [] if asked.predicted_outcome == "fits" else [*_smaller_batch(spec, largest), *changes(spec)]
    singles = _attempts(spec, offered, predict)
    pairs = (
        [] if any(map(fits, singles)) else cheapest_pairs(offered, _both, lambda both: _fitting(spec, both, predict))
    )
    return Fit(
        asked=asked,
        largest=batches.prediction(largest) if largest else None,
        likely=batches.prediction(likely) if likely else None,
        changes=singles,
        pairs=tuple(pairs),
    )


def fits(attempt: Attempt) -> bool:
    """Return whether the row certainly fits with the change."""
    return attempt.prediction is not None and attempt.prediction.predicted_outcome == "fits"


def cheapest_pairs(
    offered: Sequence[C], both: Callable[[C, C], C | None], fitting: Callable[[Sequence[C]], list[A]]
) -> list[A]:
    """Return the pairs of changes that fit, of those whose dearer change is as cheap as possible; maybe none.

    offered: cheapest first. both: two changes as one, None if they exclude each other. fitting: those that fit.
    """
    for place, dearer in enumerate(offered):
        pairs = [pair for cheaper in offered[:place] if (pair := both(cheaper, dearer)) is not None]
        if pairs and (found := fitting(pairs)):
            return found
    return []


def changed(spec: RowSpec, **settings: Any) -> RowSpec:
    """Return ``spec`` with other settings and the nearest number of samples for whole optimizer steps."""
    values = {**spec.settings.model_dump(), "global_batch_size": None, **settings}
    if values["train_samples"] is not None:
        step = values["batch_size"] * values["accumulate"] * values["devices"] * values["nodes"]
        values["train_samples"] = step * max(OPTIMIZER_STEPS, round(values["train_samples"] / step))
    return spec.model_copy(update={"settings": validate(Settings, values, f"{spec.suite}/{spec.row}")})


def changes(spec: RowSpec) -> Iterator[Change]:
    """Return the single changes that may save memory, except a smaller batch, cheapest first."""
    now = spec.settings
    if now.precision == "32-true":
        yield Change("precision bf16-mixed", "arithmetic in 16 bit, weights in 32", {"precision": "bf16-mixed"})
    if now.precision != "bf16-true":
        yield Change("precision bf16-true", "weights in 16 bit", {"precision": "bf16-true"})
    if not now.activation_checkpointing:
        cost = "time: activations are computed twice"
        yield Change("activation checkpointing", cost, {"activation_checkpointing": True})
    if now.optimizer == "adamw":
        yield Change("8-bit Adam", "moments in 8 bit", {"optimizer": "adam_8bit"})
    if now.optimizer in ("adamw", "adam_8bit"):
        yield Change("SGD", "no moments: the training converges differently", {"optimizer": "sgd"})
    if now.lora is None:
        adapters = lora(LORA_R, spec.base_model).model_dump()
        yield Change(f"LoRA, rank {LORA_R}", "only adapters are trained", {"lora": adapters})
    if now.optimizer != "deepspeed_cpu" and now.devices == 1:
        offload = {"optimizer": "deepspeed_cpu", "strategy": "deepspeed_stage_2_offload"}
        yield Change("optimizer offload", "much more time, and host memory", offload)
    if now.optimizer != "deepspeed_cpu":
        for gpus in FSDP_GPUS:
            if gpus > now.devices or (gpus == now.devices and now.strategy != "fsdp"):
                cost = f"{gpus} GPUs, each with this batch"
                yield Change(f"FSDP over {gpus} GPUs", cost, {"devices": gpus, "strategy": "fsdp"})


def _smaller_batch(spec: RowSpec, largest: int) -> Iterator[Change]:
    """Return the row with gradient accumulation: its batch is halved until it fits, or as often as possible."""
    batch, accumulate = spec.settings.batch_size, spec.settings.accumulate
    while batch % 2 == 0 and (batch > largest or batch == spec.settings.batch_size):
        batch, accumulate = batch // 2, accumulate * 2
    if batch < spec.settings.batch_size:
        name = f"batch {batch}, accumulated {accumulate} times"
        yield Change(name, "some more time", {"batch_size": batch, "accumulate": accumulate})


def _both(cheaper: Change, dearer: Change) -> Change | None:
    """Return two changes as one; None if they set the same settings."""
    if cheaper.settings.keys() & dearer.settings.keys():
        return None
    name, cost = (f"{a}; {b}" for a, b in zip(cheaper[:2], dearer[:2], strict=True))
    return Change(name, cost, cheaper.settings | dearer.settings)


def _fitting(spec: RowSpec, offered: Sequence[Change], predict: Predict) -> list[Attempt]:
    return [one for one in _attempts(spec, offered, predict) if fits(one)]


def _attempts(spec: RowSpec, offered: Sequence[Change], predict: Predict) -> tuple[Attempt, ...]:
    specs = [changed(spec, **change.settings) for change in offered]
    try:
        found: list[Prediction | str] = [*predict(specs)]
    except InputError:
        found = [_one(one, predict) for one in specs]
    return tuple(
        Attempt(change=change.name, cost=change.cost, prediction=None, reason=one)
        if isinstance(one, str)
        else Attempt(change=change.name, cost=change.cost, prediction=one)
        for change, one in zip(offered, found, strict=True)
    )


def _one(spec: RowSpec, predict: Predict) -> Prediction | str:
    try:
        return predict([spec])[0]
    except InputError as problem:
        return str(problem)
