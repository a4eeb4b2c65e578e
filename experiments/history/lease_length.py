"""Compute how long a lease has to be for the rows of suites."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from math import ceil
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError
from experiments.history.durations import RowTime, StoredTimes
from experiments.history.lease_record import NO_LEASES, EarlierLeases, earlier_leases, read_records
from experiments.history.outside_steps import outside_steps
from experiments.prediction.predict import suite_row_spec
from experiments.run_options import AUTO
from experiments.runners.remaining import makespan_s
from experiments.runners.resolve import resolve_card
from experiments.runners.targets import expected_node
from experiments.suites.cards import card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from provision.availability.times import length_in_words
from provision.models import Host, Node
from provision.words import number_with_noun

MARGIN = 0.25
"""Share by which a lease is longer than its setup and the upper estimate for its rows."""
LENGTH_STEP = timedelta(minutes=30)
"""The length of a lease is a multiple of this."""


class LeaseTooShort(InputError):
    """The rows need more time than the lease has."""


class TimeRange(NamedTuple):
    """The most likely time, and a lower and an upper estimate, s."""

    expected_s: float
    low_s: float
    high_s: float

    @property
    def in_words(self) -> str:
        """Return the time in full minutes: '3 min (2 to 5)', or '3 min' if both estimates are 3 min too."""
        expected, low, high = (ceil(seconds / 60) for seconds in self)
        return f"{expected} min" if low == high else f"{expected} min ({low} to {high})"


@dataclass(frozen=True)
class ExpectedTimes:
    """Expected times of suites that run one after another. The rows of a suite run side by side if they get GPUs.

    rows: for each suite, the times of its rows in the order in which they start; None: unknown. gpus: number of GPUs of
    all nodes together. rows_are_jobs: whether each row is a job in a queue. leases: the setup time of earlier leases of
    such nodes, and how much longer than expected their suites took.
    """

    rows: Mapping[str, Sequence[RowTime | None]]
    gpus: int
    rows_are_jobs: bool = False
    leases: EarlierLeases = NO_LEASES

    @property
    def all_times_known(self) -> bool:
        """Return whether the time of every row is known for the chip of the GPU that will run the row."""
        return all(row and not row.other_chip for row in chain.from_iterable(self.rows.values()))

    def suite_time(self, suite: str) -> TimeRange:
        """Return the expected time of a suite, s. Rows whose time is unknown do not count."""
        known = [row for row in self.rows[suite] if row]
        if not known:
            return TimeRange(0.0, 0.0, 0.0)
        once_s = outside_steps().once_s(self.rows_are_jobs)
        estimates = zip(*(row[:3] for row in known), strict=True)
        gpus = [row.gpus for row in known]
        return TimeRange(*(once_s + makespan_s(list(zip(times, gpus, strict=True)), self.gpus) for times in estimates))

    def total_time(self) -> TimeRange:
        """Return the expected time of all suites, one after another, s, multiplied by the factor of earlier leases."""
        times = zip((0.0,) * 3, *map(self.suite_time, self.rows), strict=True)
        return TimeRange(*(self.leases.run_factor * sum(estimates) for estimates in times))

    def lease_length(self) -> timedelta | None:
        """Return the length of a lease in which setup and rows end, with a margin; None unless all times are known."""
        if not self.all_times_known:
            return None
        longest = self.leases.setup + timedelta(seconds=self.total_time().high_s)
        return ceil(longest * (1 + MARGIN) / LENGTH_STEP) * LENGTH_STEP

    def require_to_end_within(self, length: timedelta) -> None:
        """Raise LeaseTooShort if the rows alone, without the setup, need more time than this length."""
        total = self.total_time()
        low = timedelta(seconds=total.low_s)
        if low > length:
            enough = length_in_words(self.lease_length() or ceil(low / LENGTH_STEP) * LENGTH_STEP)
            raise LeaseTooShort(
                f"a lease of {length_in_words(length)}: its rows need {total.in_words}"
                f"; allowed: --hours {enough}, or fewer rows"
            )

    @property
    def summary(self) -> str:
        """Return the expected times of the rows and of the setup, and how each is known, as one line."""
        known = any(chain.from_iterable(self.rows.values()))
        return self.rows_summary + (f"; {self.leases.in_words}" if known else "")

    @property
    def rows_summary(self) -> str:
        """Return the expected time of each suite, and how the times of its rows are known, as one line."""
        sources = Counter(row.source if row else "unknown" for row in chain.from_iterable(self.rows.values()))
        if not sources.keys() - {"unknown"}:
            return "time: unknown; none of these rows was measured or predicted at this size and length"
        suites = ", ".join(f"{suite} {self._suite_time_in_words(suite)}" for suite in self.rows)
        known = ", ".join(f"{number_with_noun(number, 'row')} {source}" for source, number in sources.items())
        place = f"on {number_with_noun(self.gpus, 'GPU')}" if self.gpus else "without a GPU"
        return f"time {place}: {suites} ({known})"

    def _suite_time_in_words(self, suite: str) -> str:
        time = self.suite_time(suite)
        if not time.high_s:
            return "unknown"
        return time.in_words if all(self.rows[suite]) else f"more than {time.in_words}"


def expected_times_on(hosts: Sequence[Host], suites: Sequence[Suite], results: Path) -> ExpectedTimes:
    """Return the expected times of all rows of ``suites`` on nodes like ``hosts``: full size, `--length verdict`.

    results: folder of the user's runs.
    """
    node, specs_by_suite = expected_node(hosts[0]), {}
    for suite in suites:
        card = resolve_card(suite, AUTO, node)
        specs = [suite_row_spec(suite, row, card) for row in suite.rows_for(card)]
        specs_by_suite[suite.suite] = [spec.model_copy(update={"length": "verdict"}) for spec in specs]
    gpus, stored = sum(host.gpus for host in hosts), StoredTimes.read(results)
    leases = earlier_leases(read_records(results), hosts[0].node_type)
    return expected_times(specs_by_suite, node, gpus, stored, rows_are_jobs=True, leases=leases)


def expected_times(
    specs: Mapping[str, Sequence[RowSpec]],
    node: Node,
    gpus: int,
    stored: StoredTimes,
    *,
    rows_are_jobs: bool,
    leases: EarlierLeases = NO_LEASES,
) -> ExpectedTimes:
    """Return the expected times of the rows of each suite on nodes like ``node``.

    gpus: number of GPUs of all nodes together. stored: the runs from which the times are estimated.
    """
    times = {
        suite: [stored.expected_time(spec, card_of_node(spec, node), rows_are_jobs) for spec in rows]
        for suite, rows in specs.items()
    }
    return ExpectedTimes(times, gpus, rows_are_jobs, leases)


def card_of_node(spec: RowSpec, node: Node) -> str:
    """Return the card of the node's GPU; the row's own card if the node has no GPU, or if the catalog lacks the GPU."""
    gpu = next(iter(node.gpus), None)
    return (gpu and card_of_device(gpu.name, gpu.memory_gib)) or spec.card
