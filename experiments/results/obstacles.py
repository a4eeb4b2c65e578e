"""Find the reasons why a run does not decide a statement, each in one line. Pure functions.

A twin is a smaller version of a row for a smaller card. A card is a GPU model.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, Self

from experiments.results.gpu_load import STEADY_UTILIZATION
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
from experiments.suites.cards import card_named, cards
from experiments.suites.schema import EARLY_LOSS, LOSS_FALL
from experiments.suites.settings import Settings
from experiments.suites.suite import Check, Quantity, Suite

NOT_PREDICTED: dict[str, tuple[Quantity, ...]] = {
    "the time is not predicted": TIME_QUANTITIES,
    "the loss is not predicted": LOSS_QUANTITIES,
    "this measure of GPU load is not predicted": LOAD_QUANTITIES,
    "the number of steps is not predicted": STEP_QUANTITIES,
}
"""Reasons why a prediction has no value, each with the quantities to which it applies."""


SIZE_INDEPENDENT_QUANTITIES: tuple[Quantity, ...] = (
    "peak_share",
    "reserved_share",
    "oom_step",
    "communication_share",
    "gpu_idle_share",
    "gpu_processes",
    "gpu_util_peak_percent",
    "gpu_util_percent",
    "other_gpu_util_percent",
    "cpu_wait_share",
)
"""Quantities whose bounds also apply to the smaller twin of a row. Other bounds hold only for the sizes of the lab."""
SIZE_SETTINGS = ("model", "batch_size", "accumulate", "max_length")
"""Settings in which two twins must agree if their rows in the lab agree. Else the lab's comparison does not apply."""
UNKNOWN_ON_SHARED_GPU = {*TIME_QUANTITIES, *LOAD_QUANTITIES}
"""Quantities that are not measured for rows that share a GPU."""
MULTIPROCESSOR_RATIO_LIMIT = 4
"""A GPU with at least this many times the multiprocessors of an emulated card does not show the card's times."""


class Evidence(NamedTuple):
    """The results of rows, with facts about the rows. Each field is a mapping of row ids to values.

    fewer_ranks_note: a note if the row ran on fewer ranks than it states, else "". twin_note: 'scaled to 12 GB' if the
    row ran as its smaller twin, else "". stated_settings: the settings that the lab states.
    """

    results: Mapping[str, Result]
    fewer_ranks_note: Mapping[str, str]
    twin_note: Mapping[str, str]
    stated_settings: Mapping[str, Settings]

    @classmethod
    def from_results(cls, suite: Suite, results: Mapping[str, Result]) -> Self:
        """Return the evidence for the statements of ``suite``: the results, with notes and settings of their rows."""
        stated_settings = {row: suite.settings(suite.row(row), suite.first_card(row)) for row in results}
        fewer_ranks_notes = {row: fewer_ranks_note(suite, result) for row, result in results.items()}
        twin_notes = {row: suite.twin_note(row, result.spec.card) for row, result in results.items()}
        return cls(results, fewer_ranks_notes, twin_notes, stated_settings)


def fewer_ranks_note(suite: Suite, result: Result) -> str:
    """Return a note such as 'ran on 2 of the 4 ranks ...' if the row ran on fewer ranks than it states; else ""."""
    stated = suite.settings(suite.row(result.spec.row), result.spec.card).world_size
    ran = result.spec.settings.world_size
    return "" if ran == stated else f"ran on {ran} of the {stated} ranks that the row states"


ResultPair = tuple[Result, Result]
"""The results of a check's ``row`` and ``over_row``. Without ``over_row``, both are the result of ``row``."""


class StatementConditions(NamedTuple):
    """The conditions of a statement: whether it needs the full-size model, and all ranks that the rows state."""

    needs_full_size: bool = False
    needs_all_ranks: bool = False


def outcome_obstacles(result: Result, evidence: Evidence) -> Iterator[str]:
    """Yield each reason why the outcome of a row that ran does not show whether the stated outcome is true."""
    if result.outcome == "rejected":
        yield result.reason
    if result.spec.size == "tiny":
        yield "a tiny model does not show what fits the card"
    if result.spec.settings.gpus and result.device.kind != "cuda":
        yield "no GPU"
    if note := evidence.fewer_ranks_note[result.spec.row]:
        yield note


def check_obstacles(check: Check, evidence: Evidence, conditions: StatementConditions) -> Iterator[str]:
    """Yield each reason why the values of a check's rows do not decide the check."""
    result = evidence.results[check.row]
    pair = (result, evidence.results[check.over_row] if check.over_row else result)
    if not result.predicted:
        yield from _gpu_load_obstacles(check, result)
    yield from _size_obstacles(check, pair, conditions)
    yield from _loss_obstacles(check, pair)
    yield from _time_obstacles(check, pair)
    yield from _fewer_ranks_obstacles(check, evidence.fewer_ranks_note, conditions)
    yield from _twin_obstacles(check, evidence)


def _twin_obstacles(check: Check, evidence: Evidence) -> Iterator[str]:
    """Yield the reasons why a number of the lab, or a comparison of its rows, does not apply to twins."""
    scale = evidence.twin_note[check.row]
    if not check.is_relative and scale and check.high != 0 and check.quantity not in SIZE_INDEPENDENT_QUANTITIES:
        yield f"{scale}: the lab states this number for its own sizes"
    if check.over_row:
        yield from twin_size_obstacles((check.row, check.over_row), evidence)


def twin_size_obstacles(rows: Sequence[str], evidence: Evidence) -> Iterator[str]:
    """Yield a reason for each pair of ``rows`` that have the same sizes in the lab, but not as smaller twins."""
    for one, other in combinations((row for row in rows if row in evidence.results), 2):
        if not (scale := evidence.twin_note[one] or evidence.twin_note[other]):
            continue
        (first, second), stated = (
            (evidence.results[row].spec.settings for row in (one, other)),
            evidence.stated_settings,
        )
        differ = [
            name
            for name in SIZE_SETTINGS
            if getattr(stated[one], name) == getattr(stated[other], name)
            and getattr(first, name) != getattr(second, name)
        ]
        if differ:
            yield f"{scale}: {one} and {other} differ in {' and '.join(differ)}, unlike in the lab"


def prediction_obstacles(check: Check, result: Result) -> Iterator[str]:
    """Yield the reasons why a prediction has no value for a check."""
    if not result.predicted:
        return
    for reason, quantities in NOT_PREDICTED.items():
        if _quantities(check) & set(quantities):
            yield reason


def _gpu_load_obstacles(check: Check, result: Result) -> Iterator[str]:
    """Yield the reasons why the load of GPUs is not known."""
    if _quantities(check) & set(LOAD_QUANTITIES) and result.device.kind != "cuda":
        yield "no GPU"
    if "gpu_util_percent" in _quantities(check) and result.speed and STEADY_UTILIZATION not in result.telemetry:
        yield "the steps after the warm-up were too short to measure the utilization of the GPU"


def _quantities(check: Check) -> set[str]:
    return {quantity for quantity in (check.quantity, check.over_quantity) if quantity}


def _size_obstacles(check: Check, pair: ResultPair, conditions: StatementConditions) -> Iterator[str]:
    """Yield the reasons why a tiny model, or a run without a GPU, does not show the memory that a check is about."""
    for result in pair:
        if result.spec.size == "tiny" and (conditions.needs_full_size or (not check.is_relative and check.high != 0)):
            yield "a tiny model does not show the size of the real one"
        if result.device.kind != "cuda" and "optimizer_cpu_gib" in _quantities(check):
            yield "no GPU: all memory is host memory"


def missing_value_obstacles(check: Check, pair: ResultPair) -> Iterator[str]:
    """Yield the reasons why a row has no value for a check."""
    yield from prediction_obstacles(check, pair[0])
    if _quantities(check) & UNKNOWN_ON_SHARED_GPU and (shared := [one for one in pair if one.device.shared]):
        yield f"{shared[0].spec.row} shared its GPU with other rows: times and load of the GPU were not measured"
    if not pair[0].predicted:
        yield from _gpu_load_obstacles(check, pair[0])
    yield from _loss_obstacles(check, pair)


def _loss_obstacles(check: Check, pair: ResultPair) -> Iterator[str]:
    """Yield the reasons why the losses of this run do not decide a check.

    Losses of random weights count only in a comparison of two losses. For tiny models, only two quantities are
    compared: the losses of the first steps, and the fall of the loss if the loss falls.
    """
    if not _quantities(check) & set(LOSS_QUANTITIES):
        return
    for result in pair:
        if result.spec.size == "tiny" and check.quantity not in (LOSS_FALL, EARLY_LOSS):
            yield "the loss of a tiny model is not that of the real one"
        if check.quantity != EARLY_LOSS and result.spec.length != "as-taught":
            yield "the lab states the loss of the full training, and this run is shorter"
        if not check.is_relative and (result.spec.weights == "random" or result.spec.data == "synthetic"):
            yield "the loss is stated for pretrained weights and the lab's data"
    if check.quantity == LOSS_FALL and (value_of(LOSS_FALL, pair[1]) or 0.0) < MIN_LOSS_FALL:
        yield f"the loss of {pair[1].spec.row} does not fall"


def _time_obstacles(check: Check, pair: ResultPair) -> Iterator[str]:
    """Yield the reasons why the times of this run do not decide a check.

    Reasons: no GPU, results from two different devices, absolute times on a GPU that emulates the card, or a GPU that
    is much larger than the card.
    """
    if not _quantities(check) & set(TIME_QUANTITIES):
        return
    if any(result.device.kind != "cuda" for result in pair):
        yield "no GPU: times on a CPU are not evaluated"
    first, second = (result.device.name for result in pair)
    if first != second:
        yield f"times on {first} and on {second} are not compared"
    if pair[0].emulated and not check.is_relative and check.quantity in ABSOLUTE_TIME_QUANTITIES:
        yield f"seconds on {first} are not those of {pair[0].spec.card}"
    card = pair[0].spec.card
    if (ratio := multiprocessor_ratio(pair[0].device.card, card)) >= MULTIPROCESSOR_RATIO_LIMIT:
        yield f"times on {first}, with {ratio:.0f} times the multiprocessors of {card}, are not those of the card"


def multiprocessor_ratio(device_card: str | None, card: str) -> float:
    """Return the number of multiprocessors of a GPU divided by that of the card that it emulates; 1 for an unknown GPU.

    device_card: name of the GPU in cards.yaml. If this ratio is high, times on the GPU may not be those of the card:
    a training that is limited by arithmetic on the card may be limited by the host on the much larger GPU.
    """
    device = cards().get(device_card or "")
    return device.multiprocessors / card_named(card).multiprocessors if device else 1.0


def evaluated_quantities(suite: Suite, row: str, device_card: str | None, card: str) -> list[Quantity]:
    """Return the quantities of time and load that statements about the row need on a GPU that emulates ``card``.

    So a row for which any quantity is returned should not share its GPU: these quantities would not be measured.
    device_card: name of the GPU in cards.yaml; None: not in the catalog.
    """
    checks = [reference.as_check(row) for reference in suite.row(row).expect.reference_values]
    checks += [check for claim in suite.claims for check in claim.checks if row in (check.row, check.over_row)]
    return [
        name
        for name in LOAD_QUANTITIES + TIME_QUANTITIES
        if any(name in _quantities(check) and _may_be_evaluated(check, device_card, card) for check in checks)
    ]


def _may_be_evaluated(check: Check, device_card: str | None, card: str) -> bool:
    """Return whether a GPU that emulates ``card`` may decide a check of times or load."""
    quantities = _quantities(check)
    if quantities & set(LOAD_QUANTITIES):
        return True
    is_absolute_time = not check.is_relative and check.quantity in ABSOLUTE_TIME_QUANTITIES
    return not is_absolute_time and multiprocessor_ratio(device_card, card) < MULTIPROCESSOR_RATIO_LIMIT


def _fewer_ranks_obstacles(check: Check, notes: Mapping[str, str], conditions: StatementConditions) -> Iterator[str]:
    """Yield the notes of rows that ran on fewer ranks, unless the check is a ratio that does not need all ranks."""
    if conditions.needs_all_ranks or not check.is_relative:
        yield from (notes[row] for row in (check.row, check.over_row) if row and notes[row])
