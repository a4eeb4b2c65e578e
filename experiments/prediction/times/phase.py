"""The operations of one phase of a step, and the seconds that they need of the host, the GPU and the links."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

from experiments.prediction.times.operations import Family, Operation, parse
from experiments.prediction.times.table import Table
from experiments.results.schema import Phase
from experiments.suites.cards import Card

HostWork = Phase | Literal["layers", "kernel choices", "shards", "views"]
HOST_FACTORS: Mapping[HostWork, float] = {
    "forward": 1.0,
    "backward": 1.75,
    "optimizer step": 1.0,
    "layers": 1.4e-4,
    "kernel choices": 1.25e-3,
    "shards": 0.88e-3,
    "views": 17.5e-6,
}
"""Seconds of the host for each unit of its work. For the phases: host time divided by the host time of the operations
alone, to which autograd adds in a backward pass. They were fitted to passes of trainings whose host was measured
(benchmark host_times). layers: for a matrix product of a forward pass, which stands for the Python code of a layer.
kernel choices: for a product of new sizes. These two were fitted to the same passes and to the rows of the benchmark
step_times. shards: for a gather or a reduce-scatter, with the hooks of FSDP or ZeRO around it. views: for a parameter
whose view FSDP replaces. These two were fitted to units of FSDP around small layers (benchmark rank_hosts)."""
RANK_SPREAD = 0.107
"""Standard deviation of the host's time between ranks that do the same work on one machine, relative to its mean
(benchmark rank_hosts)."""
PCIE_GB_S, LINK_SHARE = 31.5, 0.63
"""Peak rate of PCIe 4.0 with 16 lanes, and the share of the peak rate of a link that collective operations reach."""
SIMILAR_LENGTHS = 0.1
"""Relative difference up to which two lengths are too similar to extrapolate from their times."""
ADAM_PARAMETERS_PER_S = 1e9
"""Parameters that DeepSpeed's CPU Adam updates in a second on a host of 64 cores (measured: 13B in 12 s)."""


class RecordedPhase(NamedTuple):
    """The operations of a phase of a step, or of a part of it, with the number of executions of each.

    A phase has several parts if the host waits for the GPU during the phase, or if GPUs exchange data: each wait and
    each collective operation is the last operation of a part.

    tokens: length of the batch's texts. recomputed: those of ``operations`` that repeat a forward pass during a
    backward pass (activation checkpointing). end: number of operations of the training until the end of the part.
    """

    phase: Phase
    tokens: int
    operations: Mapping[str, int]
    recomputed: Mapping[str, int] = {}
    end: int = 0


class PhaseTime(NamedTuple):
    """Seconds that a phase, or a part of it, needs: of the host, of the GPU by family of operations, and of the links.

    host_work: seconds of the host for the operations alone, by the phase whose factor applies, and numbers of layers,
    of kernel choices, of shards and of views. link_s: seconds of the links between GPUs. cpu_optimizer_s: seconds in
    which the optimizer works on the CPU while the GPU waits. unmeasured_s: those of ``device_s`` that were estimated
    from similar operations. host_waits: the host waits at the end until the GPU has done all its work. gathers: the GPU
    waits for the links at the end, because later operations need what they transfer.
    """

    host_work: Mapping[HostWork, float]
    device_s: Mapping[Family, float]
    link_s: float = 0.0
    cpu_optimizer_s: float = 0.0
    unmeasured_s: float = 0.0
    host_waits: bool = False
    gathers: bool = False
    phase: Phase = "forward"

    @property
    def host_s(self) -> float:
        """Return the seconds in which the host works."""
        return self.host_s_with_factors(HOST_FACTORS)

    def host_s_with_factors(self, factors: Mapping[HostWork, float]) -> float:
        """Return the seconds in which the host works, with other factors than HOST_FACTORS."""
        return sum(factors[kind] * work for kind, work in self.host_work.items())

    @property
    def gpu_s(self) -> float:
        """Return the seconds in which the GPU works."""
        return sum(self.device_s.values())

    @property
    def kernels_s(self) -> float:
        """Return the seconds in which kernels run on the GPU; transfers from and to the host run none."""
        return self.gpu_s - self.device_s.get("host transfers", 0.0)

    @property
    def without_waits(self) -> "PhaseTime":
        """Return the time of the operations before the last one, for which host or GPU wait."""
        return self._replace(link_s=0.0, cpu_optimizer_s=0.0, host_waits=False)

    @property
    def waits(self) -> "PhaseTime":
        """Return the time of the operation at the end for which host or GPU wait."""
        return self._replace(host_work={}, device_s={})

    def scaled(self, host: float, device: float) -> "PhaseTime":
        """Return the time with the host's seconds multiplied by ``host``, those of GPU and links by ``device``."""
        return self._replace(
            host_work={kind: host * work for kind, work in self.host_work.items()},
            device_s={family: device * family_s for family, family_s in self.device_s.items()},
            link_s=device * self.link_s,
            cpu_optimizer_s=host * self.cpu_optimizer_s,
            unmeasured_s=device * self.unmeasured_s,
        )


def phase_time(recorded: RecordedPhase, table: Table, card: Card, new: Collection[str] = ()) -> PhaseTime:
    """Return the seconds of a phase, or of a part of it, on ``card``.

    new: keys of those operations of the phase whose sizes no earlier operation had.
    """
    host_work: dict[HostWork, float] = defaultdict(float)
    device_s: dict[Family, float] = defaultdict(float)
    link_s = cpu_optimizer_s = unmeasured_s = 0.0
    operations = {key: parse(key) for key in recorded.operations}
    for key, count in recorded.operations.items():
        operation = operations[key]
        if operation.family == "communication":
            link_s += count * communication_s(operation, card)
            host_work["shards"] += count * operation.is_of_shards
        elif operation.family == "views":
            host_work["views"] += count * operation.arguments[0]
        elif operation.family == "CPU optimizer":
            cpu_optimizer_s += count * operation.elements / ADAM_PARAMETERS_PER_S
        elif operation.family != "waiting":
            times = table.times(key, card)
            device_s[operation.family] += count * times.device_s
            unmeasured_s += 0.0 if table.is_measured(key) else count * times.device_s
            in_forward = count if recorded.phase == "forward" else recorded.recomputed.get(key, 0)
            host_work["forward"] += in_forward * times.host_s
            host_work[recorded.phase] += (count - in_forward) * times.host_s
            host_work["layers"] += in_forward * (operation.family == "matrix products")
    host_work["kernel choices"] += sum(parse(key).kernel_choices for key in new)
    return PhaseTime(
        dict(host_work),
        dict(device_s),
        link_s,
        cpu_optimizer_s,
        unmeasured_s,
        any(operation.host_waits for operation in operations.values()),
        any(operation.family == "communication" and not operation.reduces for operation in operations.values()),
        recorded.phase,
    )


def communication_s(operation: Operation, card: Card) -> float:
    """Return the seconds of a collective operation: each rank sends (n - 1) / n of the data, twice in an all-reduce."""
    ranks = operation.arguments[1]
    rounds = 2 if "allreduce" in operation.name else 1
    rate = LINK_SHARE * (card.link_gb_s or PCIE_GB_S) * 1e9
    return rounds * operation.total_bytes * (ranks - 1) / ranks / rate


def slowest_host(parts: Sequence[PhaseTime], ranks: int) -> list[PhaseTime]:
    """Return the parts with the time of the slowest of the ranks' hosts, for which the other ranks wait.

    The expected maximum of normally distributed times follows the approximation of Blom (1958, Statistical estimates
    and transformed beta-variables).
    """
    slowness = 1 + RANK_SPREAD * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
    return [part._replace(host_work={kind: slowness * work for kind, work in part.host_work.items()}) for part in parts]


def interpolate_parts(
    own: Sequence[PhaseTime], own_tokens: int, other: Sequence[PhaseTime], other_tokens: int, tokens: float
) -> list[PhaseTime]:
    """Return the parts of a phase for a batch with texts of ``tokens`` tokens, from those of two other batches.

    own, other: parts of the phase with each of the two batches. own_tokens, other_tokens: lengths of these batches'
    texts. The GPU's time is a linear function of the length; if both batches have about the same length, it is
    proportional to the length.
    """
    if abs(own_tokens - other_tokens) <= SIMILAR_LENGTHS * own_tokens:
        share = tokens / own_tokens if own_tokens else 1.0
        return [part.scaled(1.0, share)._replace(link_s=part.link_s) for part in own]
    weight = (tokens - own_tokens) / (other_tokens - own_tokens)
    own_s, other_s = _seconds_by_family(own), _seconds_by_family(other)
    shares = {name: 1 + weight * (other_s.get(name, 0.0) / s - 1) for name, s in own_s.items() if s}
    return [
        part._replace(
            device_s={family: shares.get(family, 1.0) * s for family, s in part.device_s.items()},
            unmeasured_s=shares.get("unmeasured", 1.0) * part.unmeasured_s,
        )
        for part in own
    ]


def _seconds_by_family(parts: Sequence[PhaseTime]) -> dict[str, float]:
    """Return the GPU's seconds by family, and those that were not measured."""
    found: dict[str, float] = defaultdict(float)
    for part in parts:
        found["unmeasured"] += part.unmeasured_s
        for family, family_s in part.device_s.items():
            found[family] += family_s
    return found
