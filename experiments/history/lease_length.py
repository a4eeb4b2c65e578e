"""Compute how long a lease has to be for the rows of suites."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from math import ceil
from pathlib import Path

from experiments.errors import InputError
from experiments.history.durations import RowTime, StoredTimes
from experiments.prediction.predict import suite_row_spec
from experiments.run_options import AUTO
from experiments.runners.resolve import resolve_card
from experiments.runners.targets import expected_node
from experiments.suites.cards import card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from provision.availability.times import length_in_words
from provision.models import Host, Node
from provision.words import number_with_noun

SETUP = timedelta(hours=1)
"""Time until the first row can start: about 10 minutes for the boot, on some nodes 30 (Chameleon's documentation), then
driver, Docker and image (assumed)."""
MARGIN = 0.25
"""Share by which a lease is longer than the expected time of its setup and rows."""
STEP = timedelta(minutes=30)
"""The length of a lease is a multiple of this."""


class LeaseTooShort(InputError):
    """The rows need more time than the lease has."""


@dataclass(frozen=True)
class ExpectedTimes:
    """Expected times of the rows of suites, in the order in which they run; None: unknown. gpus: GPUs of all nodes.

    Suites run one after another; the rows of a suite share the GPUs.
    """

    rows: Mapping[str, Sequence[RowTime | None]]
    gpus: int

    @property
    def all_times_known(self) -> bool:
        """Return whether the time of every row is known for its card."""
        return all(row and not row.other_chip for row in chain.from_iterable(self.rows.values()))

    def suite_time_range_s(self, suite: str) -> tuple[float, float]:
        """Return the lowest and the highest expected time of a suite, s. Rows whose time is unknown do not count."""
        known = [row for row in self.rows[suite] if row]
        low_s = makespan_s([(row.low_s, row.gpus) for row in known], self.gpus)
        return low_s, makespan_s([(row.high_s, row.gpus) for row in known], self.gpus)

    def total_time_range(self) -> tuple[timedelta, timedelta]:
        """Return the lowest and the highest expected time of all suites."""
        low, high = (sum(self.suite_time_range_s(suite)[side] for suite in self.rows) for side in (0, 1))
        return timedelta(seconds=low), timedelta(seconds=high)

    def lease_length(self) -> timedelta | None:
        """Return the length of a lease in which setup and rows end, with a margin; None unless all times are known."""
        if not self.all_times_known:
            return None
        return ceil((SETUP + self.total_time_range()[1]) * (1 + MARGIN) / STEP) * STEP

    def require_to_end_within(self, length: timedelta) -> None:
        """Raise LeaseTooShort if not even the rows by themselves can end in a lease of this length."""
        low, _ = self.total_time_range()
        if low > length:
            raise LeaseTooShort(
                f"a lease of {length_in_words(length)}: its rows need {_minutes_range(self.total_time_range())}"
                f"; allowed: --hours {length_in_words(self.lease_length() or ceil(low / STEP) * STEP)}, or fewer rows"
            )

    @property
    def summary(self) -> str:
        """Return the expected times of setup and rows, and how they are known, as one line."""
        known = any(chain.from_iterable(self.rows.values()))
        return self.rows_summary + (f"; setup {length_in_words(SETUP)} (assumed)" if known else "")

    @property
    def rows_summary(self) -> str:
        """Return the expected times of the rows, and how they are known, as one line."""
        sources = Counter(row.source if row else "unknown" for row in chain.from_iterable(self.rows.values()))
        if not sources.keys() - {"unknown"}:
            return "time: unknown; none of these rows was measured or predicted at this size and length"
        suites = ", ".join(f"{suite} {self._suite_time(suite)}" for suite in self.rows)
        known = ", ".join(f"{number_with_noun(number, 'row')} {source}" for source, number in sources.items())
        place = f"on {number_with_noun(self.gpus, 'GPU')}" if self.gpus else "without a GPU"
        return f"time {place}: {suites} ({known})"

    def _suite_time(self, suite: str) -> str:
        low_s, high_s = self.suite_time_range_s(suite)
        if not high_s:
            return "unknown"
        known = _minutes_range((timedelta(seconds=low_s), timedelta(seconds=high_s)))
        return known if all(self.rows[suite]) else f"more than {known}"


def expected_times_on(hosts: Sequence[Host], suites: Sequence[Suite], results: Path) -> ExpectedTimes:
    """Return the expected times of all rows of ``suites`` on nodes like ``hosts``: full size, `--length verdict`.

    results: folder of the user's runs.
    """
    node, specs_by_suite = expected_node(hosts[0]), {}
    for suite in suites:
        card = resolve_card(suite, AUTO, node)
        specs = [suite_row_spec(suite, row, card) for row in suite.rows_for(card)]
        specs_by_suite[suite.suite] = [spec.model_copy(update={"length": "verdict"}) for spec in specs]
    return expected_times(specs_by_suite, node, sum(host.gpus for host in hosts), StoredTimes.read(results))


def expected_times(specs: Mapping[str, Sequence[RowSpec]], node: Node, gpus: int, stored: StoredTimes) -> ExpectedTimes:
    """Return the expected times of the rows of each suite on nodes like ``node``, which have ``gpus`` GPUs together."""
    times = {
        suite: [stored.expected_time(spec, card_of_node(spec, node)) for spec in rows] for suite, rows in specs.items()
    }
    return ExpectedTimes(times, gpus)


def card_of_node(spec: RowSpec, node: Node) -> str:
    """Return the card of the node's GPU; the row's own card if the node has none or it is not in the catalog."""
    gpu = next(iter(node.gpus), None)
    return (gpu and card_of_device(gpu.name, gpu.memory_gib)) or spec.card


def makespan_s(rows: Sequence[tuple[float, int]], gpus: int) -> float:
    """Return when the last row ends, s: each row (seconds, GPUs) starts as soon as its GPUs are free, in this order.

    A row that needs more GPUs than there are uses all of them. A row on the CPU runs alone.
    """
    free_at = [0.0] * max(1, gpus)
    for seconds, needed in rows:
        needed = min(needed or len(free_at), len(free_at))
        start = sorted(free_at)[needed - 1]
        free_at = sorted(free_at)[needed:] + [start + seconds] * needed
    return max(free_at)


def _minutes_range(times: tuple[timedelta, timedelta]) -> str:
    low, high = (ceil(time / timedelta(minutes=1)) for time in times)
    return f"{high} min" if low == high else f"{low} to {high} min"
