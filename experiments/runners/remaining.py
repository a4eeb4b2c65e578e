"""Estimate the remaining time of a run from the expected times of its rows, and from the rows that have ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.results.schema import Result
from experiments.runners.progress import RowState
from experiments.suites.row_spec import RowSpec


class ExpectedTime(NamedTuple):
    """The expected time of a row, s. start_s: the part of this time before the row begins to build its model."""

    seconds: float
    start_s: float

    @property
    def after_start_s(self) -> float:
        return self.seconds - self.start_s


@dataclass
class RemainingTime:
    """Estimates when the rows of a run will have ended.

    The rows that have ended show how fast this machine is, as the ratio of measured to expected time. The ``expected``
    times of other rows are multiplied by the mean of 1 and this ratio. The ratio alone would correct too much, because
    part of it is the error of single expected times. The ratio leaves out the start of a row, because the first rows of
    a run wait for the warm process. A row without an expected time counts with the mean time of the ended rows.
    """

    expected: Mapping[str, ExpectedTime]
    times_of_ended_rows_s: list[float] = field(default_factory=list)
    _measured_of_ended_rows_s: float = 0.0
    _expected_of_ended_rows_s: float = 0.0

    def add_ended(self, row: str, elapsed_s: float, result: Result) -> None:
        """Record that a row has ended, ``elapsed_s`` after its start."""
        self.times_of_ended_rows_s.append(elapsed_s)
        if row in self.expected and result.times:
            self._measured_of_ended_rows_s += elapsed_s - result.times.start_s
            self._expected_of_ended_rows_s += self.expected[row].after_start_s

    def estimate_s(
        self,
        running: Sequence[RowState],
        waiting: Sequence[RowSpec],
        part_count: Callable[[RowSpec], int],
        total_parts: int,
    ) -> float | None:
        """Return the time until all rows have ended, s; None while it is unknown.

        The time is unknown while a row runs longer than expected and reports no estimate itself. If a row has no
        expected time, the time is also unknown until a first row has ended. waiting: the rows that have not started, in
        the order of their start. part_count: returns how many of the machine's ``total_parts`` parts a row occupies.
        """
        rows = [(self._left_s(state), state.spec) for state in running]
        rows += [(self._whole_row_s(spec.row), spec) for spec in waiting]
        known = [(seconds, part_count(spec)) for seconds, spec in rows if seconds is not None]
        return makespan_s(known, total_parts) if len(known) == len(rows) else None

    def _after_start_s(self, row: str) -> float:
        """Return the estimated time of a row after its start, s: the expected time, corrected for this machine."""
        ratio = (
            self._measured_of_ended_rows_s / self._expected_of_ended_rows_s if self._expected_of_ended_rows_s else 1.0
        )
        return (1 + ratio) / 2 * self.expected[row].after_start_s

    def _whole_row_s(self, row: str) -> float | None:
        """Return the estimated time of a row from its start to its end, s; None if unknown."""
        if row in self.expected:
            return self.expected[row].start_s + self._after_start_s(row)
        times_s = self.times_of_ended_rows_s
        return sum(times_s) / len(times_s) if times_s else None

    def _left_s(self, state: RowState) -> float | None:
        """Return the remaining time of a running row, s; None if unknown.

        The estimate that the row reports is an upper bound, because it assumes the highest number of steps. Until the
        row reports progress, the whole time after its start remains.
        """
        row, reported_s = state.spec.row, state.progress.left_s if state.progress else None
        whole_s = self._whole_row_s(row)
        if whole_s is None or (reported_s is not None and row not in self.expected):
            return reported_s
        left_s = whole_s - state.elapsed_s
        if state.progress is None and row in self.expected:
            left_s = max(left_s, self._after_start_s(row))
        if left_s <= 0:
            return reported_s
        return left_s if reported_s is None else min(reported_s, left_s)


def makespan_s(rows: Sequence[tuple[float, int]], total_parts: int) -> float:
    """Return the time until the last row has ended, s. The rows start in this order, each when enough parts are free.

    rows: duration in seconds of each row, and the number of the machine's parts (such as GPUs) that the row needs. A
    row that needs no part, or more than ``total_parts``, uses all of them.
    """
    free_at = [0.0] * max(1, total_parts)
    for seconds, needed in rows:
        needed = min(needed or len(free_at), len(free_at))
        start = sorted(free_at)[needed - 1]
        free_at = sorted(free_at)[needed:] + [start + seconds] * needed
    return max(free_at)
