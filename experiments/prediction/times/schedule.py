"""The order in which the host starts the operations of a phase, and the GPU executes them.

Where the host is slow, the GPU waits for it, and does not catch up if it was not behind. So a phase takes longer than
the longer one of the host's and the GPU's time, if each of them is the slower one for some of the operations.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Schedule(NamedTuple):
    """The operations of a phase in their order: the share of each in the work of the phase.

    host: shares by kind of the host's work (see HOST_FACTORS). device: shares by family of operations.
    """

    host: Mapping[Any, Array]
    device: Mapping[Any, Array]

    @classmethod
    def build(
        cls,
        order: Sequence[int],
        host: Sequence[Mapping[Any, float]],
        device: Sequence[tuple[Any, float]],
        once: Mapping[Any, Sequence[float]] = {},
    ) -> "Schedule":
        """Build a schedule.

        order: for each operation, its place in ``host`` and ``device``, which have the work of each distinct
        operation: units by kind, and the family with the seconds. once: by further kinds of the host's work, the units
        at each place of ``order``.
        """
        places = np.array(order, int)
        host_shares = _shares(host, places)
        for kind, units in once.items():
            if total := sum(units):
                host_shares[kind] = np.array(units) / total
        return cls(host_shares, _shares([dict([one]) for one in device], places))

    def run(
        self,
        host_s: Mapping[Any, float],
        device_s: Mapping[Any, float],
        host_begun_s: float,
        gpu_free_s: float,
        queue: "Queue",
    ) -> tuple[float, float]:
        """Return the times at which the host has started all operations, and at which the GPU has executed them.

        host_s, device_s: seconds of all operations, by kind and by family. host_begun_s: time at which the host begins
        the phase. gpu_free_s: time at which the GPU has done earlier work.
        """
        length = len(next(iter(self.device.values())))
        host, device = np.cumsum(_seconds(self.host, host_s, length)), _seconds(self.device, device_s, length)
        kernels = device > 0
        works_s = np.diff(host[kernels], prepend=0.0)
        started_s = host_begun_s
        for works, executions in queue.blocks(works_s, device[kernels]):
            starts = _ends(works, started_s, queue.free_s(len(works)))
            ends = _ends(executions, gpu_free_s, starts)
            queue.add(ends)
            started_s, gpu_free_s = starts[-1], ends[-1]
        return float(started_s + host[-1] - works_s.sum()), float(gpu_free_s)


class Queue:
    """The operations that the host has started and the GPU has not executed: at most ``limit``; None: no limit.

    The host waits while the queue is full.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget the operations: the GPU has executed them, or their times are not known."""
        self._ends_s = np.full(self._limit or 0, -np.inf)

    def blocks(self, *columns: Array) -> Iterator[tuple[Array, ...]]:
        """Yield the columns in blocks whose operations do not have to wait for others of the same block."""
        length = len(columns[0])
        for begin in range(0, length, self._limit or max(length, 1)):
            yield tuple(column[begin : begin + (self._limit or length)] for column in columns)

    def free_s(self, count: int) -> Array:
        """Return the times at which each of the next ``count`` operations has a place."""
        return self._ends_s[:count] if self._limit else np.full(count, -np.inf)

    def add(self, ends_s: Array) -> None:
        """Add operations. ends_s: the times at which the GPU has executed them."""
        if self._limit:
            self._ends_s = np.concatenate([self._ends_s, ends_s])[-self._limit :]


def _ends(durations_s: Array, begun_s: float, not_before_s: Array) -> Array:
    """Return when each of a series of works ends. Each begins after the previous one and after its own earliest time.

    begun_s: earliest time of the first one.
    """
    total_s = np.cumsum(durations_s)
    return total_s + np.maximum(begun_s, np.maximum.accumulate(not_before_s - (total_s - durations_s)))


def _seconds(shares: Mapping[Any, Array], totals: Mapping[Any, float], length: int) -> Array:
    """Return the seconds of each of ``length`` operations, whose sums by kind or family are ``totals``."""
    return sum((totals[name] * share for name, share in shares.items()), np.zeros(length))


def _shares(work: Sequence[Mapping[Any, float]], places: Array) -> dict[Any, Array]:
    """Return the share of each operation in all work of a kind, by kind.

    work: by kind, of one execution of each distinct operation. places: for each operation, its place in ``work``.
    """
    kinds = sorted({kind for one in work for kind in one})
    units = {kind: np.array([one.get(kind, 0.0) for one in work])[places] for kind in kinds}
    return {kind: each / total for kind, each in units.items() if (total := each.sum())}
