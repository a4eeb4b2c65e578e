"""Predict the published times from the recorded operations, with the project's step-time code and with rooflines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from statistics import fmean, median
from typing import Any, NamedTuple, TypeVar

from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import RecordedPhase, phase_time
from experiments.prediction.times.table import TABLES, Table
from experiments.suites.cards import Card
from tests.benchmarks.prediction.published_times.allocation import ONE_CONSTANT, TWO_CONSTANTS, AllocationCost
from tests.benchmarks.prediction.published_times.labels import PASSES, Label, PublishedTimes, TrainingOperations
from tests.benchmarks.prediction.published_times.linear_layers import as_timed
from tests.benchmarks.prediction.published_times.roofline import bound_s
from tests.benchmarks.prediction.tables import relative_error

MEASURED_TABLE = TABLES / "h100_80gb.jsonl.gz"
T = TypeVar("T")
FREE = AllocationCost()


class Pass(NamedTuple):
    """A forward or backward pass: seconds measured, of the GPU and of the host, memory, roofline in seconds.

    allocated_gib: memory that the pass allocates. uncleared_gib: the part of it that has to be cleared before.
    """

    measured_s: float
    gpu_s: float
    host_s: float
    allocated_gib: float
    uncleared_gib: float
    roofline_s: float

    def predicted_s(self, cost: AllocationCost = FREE) -> float:
        """Return the predicted seconds."""
        allocation_s = cost.allocate_s * self.allocated_gib + cost.clear_s * self.uncleared_gib
        return max(self.gpu_s, self.host_s + allocation_s)


class Comparison(NamedTuple):
    """A label and its two passes."""

    label: Label
    passes: tuple[Pass, ...]

    @property
    def measured_s(self) -> float:
        return sum(one.measured_s for one in self.passes)

    @property
    def roofline_s(self) -> float:
        return sum(one.roofline_s for one in self.passes)

    @property
    def roofline_factor(self) -> float:
        """Return the measured time divided by the roofline."""
        return self.measured_s / self.roofline_s

    def error(self, cost: AllocationCost = FREE) -> float:
        """Return the relative error of the predicted sum of both passes."""
        return relative_error(sum(one.predicted_s(cost) for one in self.passes), self.measured_s)


def compare_labels(
    times: PublishedTimes, operations: Mapping[str, TrainingOperations], table: Table | None = None
) -> list[Comparison]:
    """Predict every label. table: of measured operations; None: that of the H100."""
    table = table or Table.read(MEASURED_TABLE)
    return [_compare(label, operations[label.training], table, times.card(label.card)) for label in times.predicted]


def _compare(label: Label, operations: TrainingOperations, table: Table, card: Card) -> Comparison:
    passes = []
    for name, measured_ms in zip(PASSES, (label.forward_ms, label.backward_ms), strict=True):
        recorded = operations.recorded(name)
        time, roofline_s = phase_time(as_timed(recorded), table, card), _roofline_s(recorded, card)
        uncleared_gib = operations.uncleared_gib(card) if name == "forward" else 0.0
        memory = operations.allocated_gib[name], uncleared_gib
        passes.append(Pass(measured_ms / 1000, time.gpu_s, time.host_s, *memory, roofline_s))
    return Comparison(label, tuple(passes))


def _roofline_s(recorded: RecordedPhase, card: Card) -> float:
    """Return the shortest possible seconds of all operations."""
    return sum(count * bound_s(parse(key), card) for key, count in recorded.operations.items())


def fitted_cost(costs: Sequence[AllocationCost], comparisons: Sequence[Comparison]) -> AllocationCost:
    """Return the cost of allocations with the smallest mean error."""
    by_cost = zip(*(_absolute_errors(one, tuple(costs)) for one in comparisons), strict=True)
    return min(zip(costs, by_cost, strict=True), key=lambda one: fmean(one[1]))[0]


@lru_cache(maxsize=1000)
def _absolute_errors(comparison: Comparison, costs: tuple[AllocationCost, ...]) -> list[float]:
    return [abs(comparison.error(cost)) for cost in costs]


def fitted_factor(comparisons: Sequence[Comparison]) -> float:
    """Return the median ratio of the measured time to the roofline."""
    return median(one.roofline_factor for one in comparisons)


def leave_one_out(fit: Callable[[Sequence[Comparison]], T], comparisons: Sequence[Comparison]) -> list[T]:
    """Return for each comparison the constant that is fitted to the others."""
    return [fit([*comparisons[:number], *comparisons[number + 1 :]]) for number in range(len(comparisons))]


def errors_of_card(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the measured and predicted times of a card's labels, and the errors of all estimates.

    Seconds and relative errors; negative: too low. The errors that the source states of its own estimator are absolute.
    """
    ones, twos = (leave_one_out(partial(fitted_cost, costs), comparisons) for costs in (ONE_CONSTANT, TWO_CONSTANTS))
    factors = leave_one_out(fitted_factor, comparisons)
    return [
        {
            "card": one.label.card,
            "training": one.label.training,
            "measured_s": [each.measured_s for each in one.passes],
            "predicted_s": [each.predicted_s() for each in one.passes],
            "host_s": [each.host_s for each in one.passes],
            "allocated_gib": [each.allocated_gib for each in one.passes],
            "uncleared_gib": one.passes[0].uncleared_gib,
            "error": one.error(),
            "backward_error": relative_error(one.passes[1].predicted_s(), one.passes[1].measured_s),
            "allocation_s_per_gib": allocated.allocate_s,
            "allocation_error": one.error(allocated),
            "clearing_s_per_gib": list(cleared),
            "clearing_error": one.error(cleared),
            "neusight_error": one.label.neusight_percent / 100,
            "roofline_error": relative_error(one.roofline_s, one.measured_s),
            "factor_error": relative_error(factor * one.roofline_s, one.measured_s),
        }
        for one, allocated, cleared, factor in zip(comparisons, ones, twos, factors, strict=True)
    ]


def compare_operations(times: PublishedTimes, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the measured seconds of forward passes and the sum of those of their operations, both from the source."""
    forward = {(one.label.card, one.label.training): one.passes[0] for one in comparisons}
    return [
        {
            "card": one.card,
            "training": one.training,
            "measured_s": (whole := forward[one.card, one.training]).measured_s,
            "operations_s": one.total_ms / 1000,
            "rest_s": whole.measured_s - one.total_ms / 1000,
            "allocated_gib": whole.allocated_gib,
        }
        for one in times.forward_operations
    ]


def mean_error(errors: Iterable[float]) -> float:
    """Return the mean of the absolute errors."""
    return fmean(map(abs, errors))
