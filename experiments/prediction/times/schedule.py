"""The order in which the host starts the operations of a phase, and the GPU executes them.

Where the host is slow, the GPU waits for it, and does not catch up if it was not behind. So a phase takes longer than
the longer one of the host's and the GPU's time, if each of them is the slower one for some of the operations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Schedule(NamedTuple):
    """The operations of a phase in their order, and the share of each in the work of the phase.

    order: for each operation, its place in the arrays below. host: shares by kind of the host's work (see
    HOST_FACTORS). device: shares by family of operations.
    """

    order: Array
    host: Mapping[Any, Array]
    device: Mapping[Any, Array]

    @classmethod
    def build(
        cls, order: Sequence[int], host: Sequence[Mapping[Any, float]], device: Sequence[tuple[Any, float]]
    ) -> "Schedule":
        """Build a schedule. host, device: the work of each distinct operation; device: its family and its seconds."""
        counts = np.bincount(order, minlength=len(host))
        return cls(np.array(order, int), _shares(host, counts), _shares([dict([one]) for one in device], counts))

    def gpu_end_s(
        self, host_s: Mapping[Any, float], device_s: Mapping[Any, float], host_begun_s: float, gpu_free_s: float
    ) -> float:
        """Return the time at which the GPU has executed all operations.

        host_s, device_s: seconds of all operations, by kind and by family. host_begun_s: time at which the host begins
        the phase. gpu_free_s: time at which the GPU has done earlier work.
        """
        host, device = self._seconds(self.host, host_s), self._seconds(self.device, device_s)
        started, executed = host_begun_s + np.cumsum(host), np.cumsum(device)
        waits = np.where(device > 0, started - (executed - device), 0.0)
        return float(executed[-1] + max(gpu_free_s, waits.max()))

    def _seconds(self, shares: Mapping[Any, Array], totals: Mapping[Any, float]) -> Array:
        """Return the seconds of each operation, whose sums by kind or family are ``totals``."""
        return sum((totals[name] * share[self.order] for name, share in shares.items()), np.zeros(len(self.order)))


def _shares(work: Sequence[Mapping[Any, float]], counts: Array) -> dict[Any, Array]:
    """Return the share of one execution of each distinct operation in all work of a kind, by kind.

    work: by kind, of one execution of each operation. counts: number of executions of each.
    """
    units = {
        kind: np.array([one.get(kind, 0.0) for one in work]) for kind in sorted({kind for one in work for kind in one})
    }
    totals = {kind: float(counts @ each) for kind, each in units.items()}
    return {kind: each / totals[kind] for kind, each in units.items() if totals[kind]}
