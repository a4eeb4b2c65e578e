"""Find the reasons why a run does not decide a statement, each in one line. Pure functions."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from experiments.results.load import STEADY_UTILIZATION
from experiments.results.quantities import (
    ABSOLUTE_TIME_QUANTITIES,
    LOAD_QUANTITIES,
    LOSS_QUANTITIES,
    MIN_LOSS_FALL,
    STEP_QUANTITIES,
    TIME_QUANTITIES,
    value_of,
)
from experiments.results.schema import Result
from experiments.suites.schema import EARLY_LOSS, LOSS_FALL
from experiments.suites.suite import Check, Quantity

NOT_PREDICTED: dict[str, tuple[Quantity, ...]] = {
    "its time is not predicted": TIME_QUANTITIES,
    "the loss is not predicted": LOSS_QUANTITIES,
    "this load of GPUs is not predicted": LOAD_QUANTITIES,
    "the number of steps is not predicted": STEP_QUANTITIES,
}
"""Reasons why a prediction has no value, with the quantities that they are about."""


class Evidence(NamedTuple):
    """The results by row. scaled: by row, a text if it ran on fewer ranks than it states, else ""."""

    results: Mapping[str, Result]
    scaled: Mapping[str, str]


class ClaimScope(NamedTuple):
    """The conditions of a statement: whether it needs the full-size model, and all ranks that the rows state."""

    full_size: bool = False
    all_ranks: bool = False


def outcome_obstacles(result: Result, evidence: Evidence) -> Iterator[str]:
    """Yield each reason why the outcome of a row that ran does not count."""
    if result.outcome == "refused":
        yield result.reason
    if result.spec.size == "tiny":
        yield "a tiny model does not show what fits the card"
    if result.spec.settings.gpus and result.device.kind != "cuda":
        yield "no GPU"
    if scaled := evidence.scaled[result.spec.row]:
        yield scaled


def check_obstacles(check: Check, evidence: Evidence, scope: ClaimScope) -> Iterator[str]:
    """Yield each reason why the values of a check's rows do not count."""
    result = evidence.results[check.row]
    pair = (result, evidence.results[check.over_row] if check.over_row else result)
    if not result.predicted:
        yield from _load_obstacles(check, result)
    yield from _size_obstacles(check, pair, scope)
    yield from _loss_obstacles(check, pair)
    yield from _time_obstacles(check, pair)
    yield from _scaling_obstacles(check, evidence.scaled, scope)


def prediction_obstacles(check: Check, result: Result) -> Iterator[str]:
    """Yield the reasons why a prediction has no value for a check."""
    if not result.predicted:
        return
    for kind, quantities in NOT_PREDICTED.items():
        if _quantities(check) & set(quantities):
            yield kind


def _load_obstacles(check: Check, result: Result) -> Iterator[str]:
    """Yield the reasons why the load of GPUs is not known."""
    if _quantities(check) & set(LOAD_QUANTITIES) and result.device.kind != "cuda":
        yield "no GPU"
    if "gpu_util_percent" in _quantities(check) and result.speed and STEADY_UTILIZATION not in result.telemetry:
        yield "the steps after the warm-up were too short to measure the utilization of the GPU"


def _quantities(check: Check) -> set[str]:
    return {quantity for quantity in (check.quantity, check.over_quantity) if quantity}


def _size_obstacles(check: Check, pair: tuple[Result, Result], scope: ClaimScope) -> Iterator[str]:
    """Yield the reasons why the size of the model or of the device's memory does not allow a check."""
    for result in pair:
        if result.spec.size == "tiny" and (scope.full_size or (not check.relative and check.high != 0)):
            yield "a tiny model does not show the size of the real one"
        if result.device.kind != "cuda" and "optimizer_cpu_gib" in _quantities(check):
            yield "no GPU: all memory is host memory"


def missing_value_obstacles(check: Check, pair: tuple[Result, Result]) -> Iterator[str]:
    """Yield the reasons why a row has no value for a check."""
    yield from prediction_obstacles(check, pair[0])
    if not pair[0].predicted:
        yield from _load_obstacles(check, pair[0])
    yield from _loss_obstacles(check, pair)


def _loss_obstacles(check: Check, pair: tuple[Result, Result]) -> Iterator[str]:
    """Yield the reasons why the losses of this run do not decide a check.

    Losses of random weights count only where two losses are compared. Of tiny models, only the falls of the loss are
    compared, in trainings whose loss falls, and the losses of the first steps of the same training.
    """
    if not _quantities(check) & set(LOSS_QUANTITIES):
        return
    for result in pair:
        if result.spec.size == "tiny" and check.quantity not in (LOSS_FALL, EARLY_LOSS):
            yield "the loss of a tiny model is not that of the real one"
        if check.quantity != EARLY_LOSS and result.spec.length != "as-taught":
            yield "the loss is stated for the full length of the training"
        if not check.relative and (result.spec.weights == "random" or result.spec.data == "synthetic"):
            yield "the loss is stated for pretrained weights and the lab's data"
    if check.quantity == LOSS_FALL and (value_of(LOSS_FALL, pair[1]) or 0.0) < MIN_LOSS_FALL:
        yield f"the loss of {pair[1].spec.row} does not fall"


def _time_obstacles(check: Check, pair: tuple[Result, Result]) -> Iterator[str]:
    """Yield the reasons why the times of this run do not decide a check.

    Reasons: no GPU, two different devices, or seconds on another card.
    """
    if not _quantities(check) & set(TIME_QUANTITIES):
        return
    if any(result.device.kind != "cuda" for result in pair):
        yield "no GPU: times on a CPU are not evaluated"
    first, second = (result.device.name for result in pair)
    if first != second:
        yield f"times on {first} and on {second} are not compared"
    if pair[0].emulated and not check.relative and check.quantity in ABSOLUTE_TIME_QUANTITIES:
        yield f"seconds on {first} are not those of {pair[0].spec.card}"


def _scaling_obstacles(check: Check, scaled: Mapping[str, str], scope: ClaimScope) -> Iterator[str]:
    """Yield the reasons why a check needs all ranks that the lab states. Ratios may be allowed on fewer."""
    if scope.all_ranks or not check.relative:
        yield from (scaled[row] for row in (check.row, check.over_row) if row and scaled[row])
