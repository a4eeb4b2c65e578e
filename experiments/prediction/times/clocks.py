"""The time of a step whose host, GPU and links work at the same time, and wait for each other at some points."""

from collections.abc import Mapping, Sequence

from experiments.prediction.times.phase import HOST_FACTORS, HostWork, PhaseTime
from experiments.prediction.times.schedule import Queue

QUEUED_OPERATIONS = 1024
"""Number of operations that the host can start before the GPU has executed the first of them."""
SIMULATED_STEPS = 3
"""Number of equal steps to simulate. Only the last one counts: it begins while the GPU may still be busy."""


class Clocks:
    """Simulated clocks: the time, in seconds, at which host, GPU and links end the work that was added so far.

    busy_s: seconds in which kernels ran on the GPU, those of transfers between GPUs included. queued_operations: number
    of operations that the host can start before the GPU has executed the first of them; None: no limit.
    """

    def __init__(self, queued_operations: int | None = QUEUED_OPERATIONS) -> None:
        self.host_s = self.gpu_s = self.links_s = self.busy_s = 0.0
        self._busy_until_s = 0.0
        self._queue = Queue(queued_operations)

    def run(self, part: PhaseTime, factors: Mapping[HostWork, float]) -> None:
        """Add the work of a part of a phase.

        The GPU executes each operation after the host has started it. In a backward pass, the GPU does not wait for
        earlier reductions, because only the optimizer needs their results. Gathers wait until the GPU has done
        the optimizer's step, because they transfer the updated parameters.
        """
        gpu_free_s = max(self.gpu_s, 0.0 if part.phase == "backward" else self.links_s)
        host_begun_s = self.host_s
        if not part.gpu_s:
            self.host_s += part.host_s_with_factors(factors)
        else:
            self.host_s, self.gpu_s = part.run(factors, host_begun_s, gpu_free_s, self._queue)
            self._count_busy(max(host_begun_s, gpu_free_s), self.gpu_s, part.kernels_s)
        if part.phase == "optimizer step":
            self.links_s = max(self.links_s, self.gpu_s)
        if part.link_s:
            self._transfer(part)
        if part.host_waits or part.cpu_optimizer_s:
            self.host_s = max(self.host_s, self.gpu_s) + part.cpu_optimizer_s

    def wait(self) -> None:
        """Let the host wait until all work is done."""
        self.host_s = self.latest_s

    def _transfer(self, part: PhaseTime) -> None:
        """Begin a gather as soon as the host requests it, and a reduction after the GPU has computed its input."""
        begun_s = max(self.host_s, self.links_s, 0.0 if part.gathers else self.gpu_s)
        self.links_s = begun_s + part.link_s
        self._count_busy(begun_s, self.links_s, part.link_s)
        if part.gathers:
            self.gpu_s = max(self.gpu_s, self.links_s)

    def _count_busy(self, begun_s: float, ended_s: float, kernels_s: float) -> None:
        """Count kernels that run evenly spread from begun_s to ended_s, without the time that was already counted.

        kernels_s: seconds in which the kernels run.
        """
        uncounted_s = ended_s - max(begun_s, self._busy_until_s)
        if uncounted_s > 0:
            self.busy_s += kernels_s * uncounted_s / (ended_s - begun_s)
            self._busy_until_s = ended_s

    @property
    def latest_s(self) -> float:
        """Return the time at which all work is done."""
        return max(self.host_s, self.gpu_s, self.links_s)


def total_seconds(parts: Sequence[PhaseTime], factors: Mapping[HostWork, float] = HOST_FACTORS) -> float:
    """Return the seconds of one of many equal steps. factors: see HOST_FACTORS."""
    return _simulate(parts, factors)[0]


def gpu_busy_share(parts: Sequence[PhaseTime]) -> float:
    """Return the share of a step in which kernels run on the GPU, those of transfers between GPUs included."""
    step_s, busy_s = _simulate(parts, HOST_FACTORS)
    return min(1.0, busy_s / step_s) if step_s else 0.0


def _simulate(parts: Sequence[PhaseTime], factors: Mapping[HostWork, float]) -> tuple[float, float]:
    """Return the seconds of one of many equal steps, and the seconds of this step in which the GPU is busy."""
    clocks, begun_s, busy_before_s = Clocks(), 0.0, 0.0
    for _ in range(SIMULATED_STEPS):
        begun_s, busy_before_s = clocks.latest_s, clocks.busy_s
        for part in parts:
            clocks.run(part, factors)
    return clocks.latest_s - begun_s, clocks.busy_s - busy_before_s
