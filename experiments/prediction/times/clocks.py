"""The time of a step whose host, GPU and links work at the same time, and wait for each other at some points."""

from collections.abc import Mapping, Sequence

from experiments.prediction.times.phase import HOST_FACTORS, HostWork, PhaseTime

STEPS = 3
"""Number of simulated steps. Only the last one counts, which begins while the GPU may still work off the one before."""


class Clocks:
    """The times, in seconds, at which host, GPU and links have done their work so far."""

    def __init__(self) -> None:
        self.host_s = self.gpu_s = self.links_s = 0.0

    def run(self, part: PhaseTime, factors: Mapping[HostWork, float]) -> None:
        """Add the work of a part of a phase.

        The GPU begins the part when the host does, and ends it after the host. In a backward pass, it need not wait
        for earlier reductions, which only the optimizer needs. Gathers need what the optimizer has computed.
        """
        begun_s = max(self.host_s, self.gpu_s, 0.0 if part.phase == "backward" else self.links_s)
        self.host_s += part.host_s_with_factors(factors)
        if part.gpu_s:
            self.gpu_s = max(begun_s + part.gpu_s, self.host_s)
        if part.phase == "optimizer step":
            self.links_s = max(self.links_s, self.gpu_s)
        if part.link_s:
            self._transfer(part)
        if part.host_waits or part.cpu_optimizer_s:
            self.host_s = max(self.host_s, self.gpu_s) + part.cpu_optimizer_s

    def _transfer(self, part: PhaseTime) -> None:
        """Begin a gather as soon as the host asks for it, a reduction after the GPU has computed its input."""
        begun_s = max(self.host_s, self.links_s)
        self.links_s = (begun_s if part.gathers else max(begun_s, self.gpu_s)) + part.link_s
        if part.gathers:
            self.gpu_s = max(self.gpu_s, self.links_s)

    @property
    def latest_s(self) -> float:
        """Return the time at which all work is done."""
        return max(self.host_s, self.gpu_s, self.links_s)


def total_seconds(parts: Sequence[PhaseTime], factors: Mapping[HostWork, float] = HOST_FACTORS) -> float:
    """Return the seconds of one of many equal steps. factors: of the host's time."""
    clocks, begun_s = Clocks(), 0.0
    for _ in range(STEPS):
        begun_s = clocks.latest_s
        for part in parts:
            clocks.run(part, factors)
    return clocks.latest_s - begun_s
