"""Find what fits a card: the largest batch of a row, and changes that make the row fit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import Field

from experiments.errors import InputError
from experiments.prediction.batches import BatchSearch
from experiments.prediction.changes import SEPARATOR, Combination, RuledOut
from experiments.prediction.custom_spec import OPTIMIZER_STEPS, build_lora
from experiments.prediction.predict import OnFailure
from experiments.results.predictions import BORDERLINE_SHARE, Prediction
from experiments.results.schema import Record
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import validate

DEFAULT_LORA_RANK = 16
FSDP_GPU_COUNTS = (2, 4, 8)
MAY_COST = ("packing", "precision bf16-mixed", "DeepSpeed", "FSDP")
"""Beginnings of the names of changes that can also increase the memory, with other kernels, copies or buffers."""

Predict = Callable[[Sequence[RowSpec], OnFailure | None], list[Prediction]]
"""Predicts rows as ``service.trace_rows`` does. The second argument is called for each row that cannot be predicted."""
ChangeT = TypeVar("ChangeT")
AttemptT = TypeVar("AttemptT")


class Change(NamedTuple):
    """A change of a row's settings. cost: what the change costs, in words, such as 'weights in 16 bit'."""

    name: str
    cost: str
    settings: dict[str, Any]


class Attempt(Record):
    """The prediction of a row with one change.

    ``prediction`` is None if the row cannot be trained with the change; ``reason`` says why.
    """

    change: str
    cost: str
    prediction: Prediction | None
    reason: str = ""


class Fit(Record):
    """The largest batches with which a row fits its card, and the changes that were tried to make the row fit.

    requested: the unchanged row. largest: the row with the largest batch that fits. largest_borderline: the row with
    the largest batch that fits or is borderline. Both are None if even a batch of 1 is too large. Batches above 4096
    are not tried.
    """

    requested: Prediction
    largest: Prediction | None
    largest_borderline: Prediction | None
    changes: tuple[Attempt, ...] = Field(description="cheapest first; empty for a row that fits unchanged")
    pairs: tuple[Attempt, ...] = Field(
        default=(),
        description="if no single change makes the training fit: the cheapest pairs of changes that do",
    )


def fit_row(spec: RowSpec, predict: Predict) -> Fit:
    """Return the largest batch of ``spec`` that fits and, if ``spec`` does not fit, changes that save memory.

    Pairs of changes are tried if no single change fits. A pair is not tried if a combination that contains it does not
    fit.

    Changes are ordered by cost. The cheapest do not affect the result of the training (accumulation, the optimizer step
    in the backward pass, packing, the chunked loss). Then come changes of the arithmetic (precision), the time
    (checkpointing), the optimizer (8 bit, SGD) and the trained weights (LoRA). The most expensive use slow host memory
    or more GPUs.
    """
    batches = BatchSearch(
        spec.settings.batch_size,
        lambda sizes: predict([change_settings(spec, batch_size=size) for size in sizes], None),
    )
    requested = batches.predict_batch(spec.settings.batch_size)
    largest = batches.largest_batch(BORDERLINE_SHARE * requested.usable_gib)
    largest_borderline = batches.largest_batch(0.0)
    candidates = (
        [] if requested.predicted_outcome == "fits" else [*_smaller_batch_change(spec, largest), *single_changes(spec)]
    )
    singles = _try_changes(spec, candidates, predict)
    pairs = [] if any(map(fits, singles)) else _pairs_that_fit(spec, candidates, predict, largest_borderline)
    return Fit(
        requested=requested,
        largest=batches.predict_batch(largest) if largest else None,
        largest_borderline=batches.predict_batch(largest_borderline) if largest_borderline else None,
        changes=singles,
        pairs=tuple(pairs),
    )


def fits(attempt: Attempt) -> bool:
    """Return whether the row certainly fits with the change."""
    return attempt.prediction is not None and attempt.prediction.predicted_outcome == "fits"


def cheapest_pairs(
    candidates: Sequence[ChangeT],
    combine: Callable[[ChangeT, ChangeT], ChangeT | None],
    try_pairs: Callable[[Sequence[ChangeT]], list[AttemptT]],
) -> list[AttemptT]:
    """Return the cheapest pairs of changes with which the training fits; empty if there are none.

    The cost of a pair is that of its more expensive change.

    candidates: single changes, cheapest first. combine: returns two changes as one, or None if they exclude each other.
    try_pairs: predicts the row with each pair, and returns the attempts that fit.
    """
    for index, costlier in enumerate(candidates):
        pairs = [pair for cheaper in candidates[:index] if (pair := combine(cheaper, costlier)) is not None]
        if pairs and (fitting := try_pairs(pairs)):
            return fitting
    return []


def change_settings(spec: RowSpec, **settings: Any) -> RowSpec:
    """Return ``spec`` with other settings; the number of samples is rounded to whole optimizer steps."""
    values = {**spec.settings.model_dump(), "global_batch_size": None, **settings}
    if values["train_samples"] is not None:
        samples_per_step = values["batch_size"] * values["accumulate"] * values["devices"] * values["nodes"]
        steps = max(OPTIMIZER_STEPS, round(values["train_samples"] / samples_per_step))
        values["train_samples"] = samples_per_step * steps
    return spec.model_copy(update={"settings": validate(Settings, values, f"{spec.suite}/{spec.row}")})


def single_changes(spec: RowSpec) -> Iterator[Change]:
    """Yield single changes that may save memory, cheapest first. None of them is a smaller batch."""
    current = spec.settings
    cost = "no gradient accumulation: each backward pass updates the weights"
    if not current.optimizer_in_backward:
        yield from _change_if_possible(spec, Change("optimizer in backward", cost, {"optimizer_in_backward": True}))
    if current.dataset != "constant" and not current.packing:
        yield from _change_if_possible(spec, Change("packing", "none: texts without padding", {"packing": True}))
    if not current.chunked_loss:
        cost = "time: the output layer is computed twice"
        yield from _change_if_possible(spec, Change("chunked loss", cost, {"chunked_loss": True}))
    if current.precision == "32-true":
        yield Change("precision bf16-mixed", "arithmetic in 16 bit, weights in 32", {"precision": "bf16-mixed"})
    if current.precision != "bf16-true":
        yield Change("precision bf16-true", "weights in 16 bit", {"precision": "bf16-true"})
    if not current.activation_checkpointing:
        cost = "time: some activations are computed twice"
        selective = {"activation_checkpointing": "selective"}
        yield from _change_if_possible(spec, Change("selective checkpointing", cost, selective))
    if current.activation_checkpointing is not True:
        cost = "time: activations are computed twice"
        yield Change("activation checkpointing", cost, {"activation_checkpointing": True})
    if current.optimizer == "adamw":
        yield Change("8-bit Adam", "moments in 8 bit", {"optimizer": "adam_8bit"})
    if current.optimizer in ("adamw", "adam_8bit"):
        cost = "no moments: the training converges differently"
        yield Change("SGD", cost, {"optimizer": "sgd", "betas": None})
    if current.lora is None:
        adapters = build_lora(DEFAULT_LORA_RANK, spec.base_model).model_dump()
        yield Change(f"LoRA, rank {DEFAULT_LORA_RANK}", "only adapters are trained", {"lora": adapters})
    if current.optimizer == "adamw":
        yield from _change_if_possible(
            spec, Change("AdamW on the host", "more time, and host memory", {"optimizer": "adamw_cpu"})
        )
    if not current.activation_offload:
        cost = "more time, and host memory"
        yield from _change_if_possible(spec, Change("activations on the host", cost, {"activation_offload": True}))
    if current.optimizer != "deepspeed_cpu" and current.devices == 1:
        offload = {"optimizer": "deepspeed_cpu", "strategy": "deepspeed_stage_2_offload"}
        yield Change("DeepSpeed optimizer offload", "much more time, and host memory", offload)
    if current.optimizer != "deepspeed_cpu":
        for gpus in FSDP_GPU_COUNTS:
            if gpus > current.devices or (gpus == current.devices and current.strategy != "fsdp"):
                cost = f"{gpus} GPUs, each with this batch"
                yield Change(f"FSDP over {gpus} GPUs", cost, {"devices": gpus, "strategy": "fsdp"})


def _change_if_possible(spec: RowSpec, change: Change) -> Iterator[Change]:
    """Yield the change if the row's other settings allow it."""
    if isinstance(_change_or_explain(spec, change), RowSpec):
        yield change


def _smaller_batch_change(spec: RowSpec, largest: int) -> Iterator[Change]:
    """Yield gradient accumulation with a smaller batch: the batch is halved until it fits, or until it is odd."""
    batch, accumulate = spec.settings.batch_size, spec.settings.accumulate
    while batch % 2 == 0 and (batch > largest or batch == spec.settings.batch_size):
        batch, accumulate = batch // 2, accumulate * 2
    if batch < spec.settings.batch_size:
        name = f"batch {batch}, accumulated {accumulate} times"
        yield Change(name, "some more time", {"batch_size": batch, "accumulate": accumulate})


class _ChangedRow(NamedTuple):
    """A row with some changes. changed: the names of the settings that they set, and that no further change may set."""

    spec: RowSpec
    changed: frozenset[str] = frozenset()


def _changes_of_row(row: _ChangedRow) -> list[tuple[str, _ChangedRow]]:
    """Return the single changes, cheapest first, that are possible beside those that the row has."""
    found = []
    for change in single_changes(row.spec):
        changed = _change_or_explain(row.spec, change)
        if isinstance(changed, RowSpec) and not row.changed & change.settings.keys():
            found.append((change.name, _ChangedRow(changed, row.changed | change.settings.keys())))
    return found


def _pairs_that_fit(
    spec: RowSpec, candidates: Sequence[Change], predict: Predict, largest_borderline: int
) -> list[Attempt]:
    """Return the cheapest pairs of changes with which the row fits.

    largest_borderline: the largest batch that may fit without changes; 0: none does.
    """

    def may_fit(combination: Combination[_ChangedRow]) -> bool:
        problems = list[Exception]()
        predictions = predict([combination.training.spec], lambda _, problem: problems.append(problem))
        return any(one.predicted_outcome != "oom" for one in predictions) or bool(problems)

    smaller = [change for change in candidates if "batch_size" in change.settings]
    batch = min((change.settings["batch_size"] for change in smaller), default=spec.settings.batch_size)
    smallest = _ChangedRow(change_settings(spec, batch_size=batch))
    ruled_out = RuledOut(smallest, _changes_of_row, may_fit, [change.name for change in smaller], MAY_COST)
    if not largest_borderline and ruled_out.rule_out_all([change.name for change in candidates]):
        return []

    def try_pairs(pairs: Sequence[Change]) -> list[Attempt]:
        possible = [pair for pair in pairs if isinstance(_change_or_explain(spec, pair), RowSpec)]
        by_names = {tuple(pair.name.split(SEPARATOR)): pair for pair in possible}
        left = [by_names[names] for names in ruled_out.not_ruled_out([*by_names])]
        return _attempts_that_fit(spec, left, predict)

    return cheapest_pairs(candidates, _combine, try_pairs)


def _combine(cheaper: Change, costlier: Change) -> Change | None:
    """Return two changes as one; None if they set the same settings."""
    if cheaper.settings.keys() & costlier.settings.keys():
        return None
    name, cost = (f"{a}{SEPARATOR}{b}" for a, b in zip(cheaper[:2], costlier[:2], strict=True))
    return Change(name, cost, cheaper.settings | costlier.settings)


def _attempts_that_fit(spec: RowSpec, candidates: Sequence[Change], predict: Predict) -> list[Attempt]:
    return [attempt for attempt in _try_changes(spec, candidates, predict) if fits(attempt)]


def _try_changes(spec: RowSpec, candidates: Sequence[Change], predict: Predict) -> tuple[Attempt, ...]:
    changed_rows = [_change_or_explain(spec, change) for change in candidates]
    problems: dict[str, str] = {}
    predictions = predict(
        [one for one in changed_rows if isinstance(one, RowSpec)],
        lambda row, problem: problems.update({row.fingerprint: str(problem)}),
    )
    prediction_by_fingerprint = {one.spec.fingerprint: one for one in predictions}

    def attempt(change: Change, row: RowSpec | str) -> Attempt:
        prediction = prediction_by_fingerprint.get(row.fingerprint) if isinstance(row, RowSpec) else None
        reason = row if isinstance(row, str) else problems.get(row.fingerprint, "")
        return Attempt(change=change.name, cost=change.cost, prediction=prediction, reason=reason)

    return tuple(attempt(*one) for one in zip(candidates, changed_rows, strict=True))


def _change_or_explain(spec: RowSpec, change: Change) -> RowSpec | str:
    """Return the changed row, or the reason why the row's other settings do not allow the change."""
    try:
        return change_settings(spec, **change.settings)
    except InputError as problem:
        return str(problem)
