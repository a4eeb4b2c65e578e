"""Predict the published times from the recorded operations, with the project's step-time code and with rooflines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import PhaseTime, RecordedPhase, phase_time
from experiments.prediction.times.table import TABLES, Table
from experiments.suites.cards import Card
from tests.benchmarks.prediction.published_times.labels import PASSES, Label, PublishedTimes, TrainingOperations
from tests.benchmarks.prediction.published_times.roofline import bound_s
from tests.benchmarks.prediction.tables import relative_error

MEASURED_TABLE = TABLES / "h100_80gb.jsonl.gz"
ALLOCATION_S = tuple(half / 2000 for half in range(100))
"""Seconds of the host per allocated GiB among which a fit chooses."""


class Pass(NamedTuple):
    """A forward or backward pass: measured seconds, predicted times, allocated memory, roofline in seconds."""

    measured_s: float
    time: PhaseTime
    allocated_gib: float
    roofline_s: float

    def predicted_s(self, allocation_s: float = 0.0) -> float:
        """Return the predicted seconds. allocation_s: seconds that the host needs to allocate a GiB."""
        return max(self.time.gpu_s, self.time.host_s + allocation_s * self.allocated_gib)


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

    def error(self, allocation_s: float = 0.0) -> float:
        """Return the relative error of the predicted sum of both passes. allocation_s: as of ``predicted_s``."""
        return relative_error(sum(one.predicted_s(allocation_s) for one in self.passes), self.measured_s)


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
        time, roofline_s = phase_time(recorded, table, card), _roofline_s(recorded, card)
        passes.append(Pass(measured_ms / 1000, time, operations.allocated_gib[name], roofline_s))
    return Comparison(label, tuple(passes))


def _roofline_s(recorded: RecordedPhase, card: Card) -> float:
    """Return the shortest possible seconds of all operations."""
    return sum(count * bound_s(parse(key), card) for key, count in recorded.operations.items())


def fitted_allocation_s(comparisons: Sequence[Comparison]) -> float:
    """Return the seconds of the host per allocated GiB with the smallest mean error."""
    return min(ALLOCATION_S, key=lambda allocation_s: mean_error(one.error(allocation_s) for one in comparisons))


def fitted_factor(comparisons: Sequence[Comparison]) -> float:
    """Return the median ratio of the measured time to the roofline."""
    return median(one.roofline_factor for one in comparisons)


def leave_one_out(fit: Callable[[Sequence[Comparison]], float], comparisons: Sequence[Comparison]) -> list[float]:
    """Return for each comparison the constant that is fitted to the others."""
    return [fit([*comparisons[:number], *comparisons[number + 1 :]]) for number in range(len(comparisons))]


def errors_of_card(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the measured and predicted times of a card's labels, and the errors of all estimates.

    Seconds and relative errors; negative: too low. The errors that the source states of its own estimator are absolute.
    """
    allocations_s = leave_one_out(fitted_allocation_s, comparisons)
    factors = leave_one_out(fitted_factor, comparisons)
    return [
        {
            "card": one.label.card,
            "training": one.label.training,
            "measured_s": [each.measured_s for each in one.passes],
            "predicted_s": [each.predicted_s() for each in one.passes],
            "host_s": [each.time.host_s for each in one.passes],
            "allocated_gib": [each.allocated_gib for each in one.passes],
            "error": one.error(),
            "backward_error": relative_error(one.passes[1].predicted_s(), one.passes[1].measured_s),
            "allocation_s_per_gib": allocation_s,
            "allocation_error": one.error(allocation_s),
            "neusight_error": one.label.neusight_percent / 100,
            "roofline_error": relative_error(one.roofline_s, one.measured_s),
            "factor_error": relative_error(factor * one.roofline_s, one.measured_s),
        }
        for one, allocation_s, factor in zip(comparisons, allocations_s, factors, strict=True)
    ]


def mean_error(errors: Iterable[float]) -> float:
    """Return the mean of the absolute errors."""
    return fmean(map(abs, errors))
