"""The order in which the host starts the operations of a phase, and the GPU executes them.

Where the host is slow, the GPU waits for it, and does not catch up if it was not behind. So a phase takes longer than
the longer one of the host's and the GPU's time, if each of them is the slower one for some of the operations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Schedule(NamedTuple):
    """The operations of a phase in their order, and the work of each.

    order: for each operation, the place of its work in the arrays below. host: units of the host's work by kind (see
    HOST_FACTORS). device_s: seconds of the GPU by family of operations.
    """

    order: Array
    host: Mapping[Any, Array]
    device_s: Mapping[Any, Array]

    @classmethod
    def build(
        cls, order: Sequence[int], host: Sequence[Mapping[Any, float]], device: Sequence[tuple[Any, float]]
    ) -> "Schedule":
        """Build a schedule. host, device: the work of each distinct operation; device: its family and its seconds."""
        kinds = sorted({kind for one in host for kind in one})
        families = sorted({family for family, _ in device})
        return cls(
            np.array(order, int),
            {kind: np.array([one.get(kind, 0.0) for one in host]) for kind in kinds},
            {name: np.array([seconds if family == name else 0.0 for family, seconds in device]) for name in families},
        )

    def gpu_end_s(
        self, host_s: Mapping[Any, float], device_s: Mapping[Any, float], host_begun_s: float, gpu_free_s: float
    ) -> float:
        """Return the time at which the GPU has executed all operations.

        host_s, device_s: seconds of all operations, by kind and by family. host_begun_s: time at which the host begins
        the phase. gpu_free_s: time at which the GPU has done earlier work.
        """
        host, device = self._seconds(self.host, host_s), self._seconds(self.device_s, device_s)
        started, executed = host_begun_s + np.cumsum(host), np.cumsum(device)
        waits = np.where(device > 0, started - (executed - device), 0.0)
        return float(executed[-1] + max(gpu_free_s, waits.max()))

    def _seconds(self, work: Mapping[Any, Array], totals: Mapping[Any, float]) -> Array:
        """Return the seconds of each operation, whose sums by kind or family are ``totals``."""
        counts = np.bincount(self.order, minlength=len(next(iter(work.values()), ())))
        seconds = np.zeros(len(counts))
        for name, units in work.items():
            if total := float(counts @ units):
                seconds += units * (totals.get(name, 0.0) / total)
        return seconds[self.order]
