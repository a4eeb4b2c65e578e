"""The operations of one phase of a step, and the seconds that they need of the host, the GPU and the links."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

from experiments.prediction.times.operations import Family, Operation, parse
from experiments.prediction.times.schedule import Queue, Schedule
from experiments.prediction.times.table import Table
from experiments.results.schema import Phase
from experiments.suites.cards import Card

HostWork = Phase | Literal["layers", "kernel choices", "shards", "views", "checkpoints", "modules", "micro-steps"]
HOST_FACTORS: Mapping[HostWork, float] = {
    "forward": 1.0,
    "backward": 1.75,
    "optimizer step": 1.0,
    "layers": 1.3e-4,
    "kernel choices": 1.5e-3,
    "shards": 0.88e-3,
    "views": 17.5e-6,
    "checkpoints": 1.57e-3,
    "modules": 10.6e-6,
    "micro-steps": 3e-3,
}
"""Seconds of the host for each unit of its work.

For the three phases, the unit is a second of host time that the operations alone need. In a backward pass, autograd
needs additional time. These factors were fitted to passes of trainings whose host was measured (benchmark host_times).
layers: for each matrix product of a forward pass, which stands for the Python code of a layer. kernel choices: for each
product of new sizes, for which cuBLAS chooses a kernel, and CUDA loads it if it is new. micro-steps: for each one of a
row, in which the training's loop loads a batch and calls its hooks. These three were fitted to the same passes and to
the rows of the benchmark step_times. shards: for each gather or reduce-scatter, with the hooks of FSDP or ZeRO around
it. views: for each parameter whose view FSDP replaces. These two were fitted to units of FSDP around small layers
(benchmark rank_hosts). checkpoints: for each checkpointed function, in addition to its repetition (benchmark
host_times.checkpointing). modules: for each module of a model in each micro-step of transformers' Trainer (benchmark
host_times.trainer_steps)."""
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
    sequence: the operations in their order, as places in ``operations``; () if it is unknown. repeats: for each of
    them, whether it repeats a forward pass.
    """

    phase: Phase
    tokens: int
    operations: Mapping[str, int]
    recomputed: Mapping[str, int] = {}
    end: int = 0
    sequence: tuple[int, ...] = ()
    repeats: tuple[bool, ...] = ()


class PhaseTime(NamedTuple):
    """Seconds that a phase, or a part of it, needs: of the host, of the GPU by family of operations, and of the links.

    host_work: units of the host's work (see HOST_FACTORS): for each phase, seconds of the operations alone; and numbers
    of layers, of kernel choices, and of the other units. link_s: seconds of the links between GPUs.
    cpu_optimizer_s: seconds in which the optimizer works on the CPU while the GPU waits. unmeasured_s: those seconds of
    ``device_s`` that were estimated from similar operations. host_waits: whether the host waits at the end until the
    GPU has done all its work. gathers: whether the GPU waits for the links at the end, because later operations need
    what they transfer. schedule: the order of the operations; None: the GPU begins the part when the host does, and
    ends it after the host.
    """

    host_work: Mapping[HostWork, float]
    device_s: Mapping[Family, float]
    link_s: float = 0.0
    cpu_optimizer_s: float = 0.0
    unmeasured_s: float = 0.0
    host_waits: bool = False
    gathers: bool = False
    phase: Phase = "forward"
    schedule: Schedule | None = None

    @property
    def host_s(self) -> float:
        """Return the seconds in which the host works."""
        return self.host_s_with_factors(HOST_FACTORS)

    def host_s_with_factors(self, factors: Mapping[HostWork, float]) -> float:
        """Return the seconds in which the host works, with other factors than HOST_FACTORS."""
        return sum(self._host_s_by_kind(factors).values())

    def _host_s_by_kind(self, factors: Mapping[HostWork, float]) -> dict[HostWork, float]:
        return {kind: factors[kind] * work for kind, work in self.host_work.items()}

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
        """Return the time without the wait at the end of the part."""
        return self._replace(link_s=0.0, cpu_optimizer_s=0.0, host_waits=False)

    @property
    def waits(self) -> "PhaseTime":
        """Return only the wait at the end of the part: for the GPU, for links, or for the optimizer on the CPU."""
        return self._replace(host_work={}, device_s={}, schedule=None)

    def run(
        self, factors: Mapping[HostWork, float], host_begun_s: float, gpu_free_s: float, queue: Queue
    ) -> tuple[float, float]:
        """Return the times at which the host and the GPU have done their work of the part. factors: see HOST_FACTORS.

        host_begun_s: time at which the host begins the part. gpu_free_s: time at which the GPU can begin it.
        """
        if self.schedule:
            return self.schedule.run(self._host_s_by_kind(factors), self.device_s, host_begun_s, gpu_free_s, queue)
        queue.clear()
        host_ended_s = host_begun_s + self.host_s_with_factors(factors)
        return host_ended_s, max(max(host_begun_s, gpu_free_s) + self.gpu_s, host_ended_s)

    def scaled(self, host_factor: float, device_factor: float) -> "PhaseTime":
        """Return the time with the host's seconds times ``host_factor``, all others times ``device_factor``."""
        return self._replace(
            host_work={kind: host_factor * work for kind, work in self.host_work.items()},
            device_s={family: device_factor * family_s for family, family_s in self.device_s.items()},
            link_s=device_factor * self.link_s,
            cpu_optimizer_s=host_factor * self.cpu_optimizer_s,
            unmeasured_s=device_factor * self.unmeasured_s,
        )


class OperationWork(NamedTuple):
    """What one execution of an operation needs; see PhaseTime."""

    family: Family
    host_work: Mapping[HostWork, float] = {}
    device_s: float = 0.0
    link_s: float = 0.0
    cpu_optimizer_s: float = 0.0
    unmeasured_s: float = 0.0


def phase_time(recorded: RecordedPhase, table: Table, card: Card, new_sizes: Mapping[str, float] = {}) -> PhaseTime:
    """Return the seconds of a phase, or of a part of it, on ``card``.

    new_sizes: by key of an operation, the share of such phases in which its sizes are new: no earlier operation had
    them.
    """
    works = [
        operation_work(key, phase, table, card) for phase in (recorded.phase, "forward") for key in recorded.operations
    ]
    choices = [
        table.host.other * new_sizes[key] * parse(key).kernel_choices if key in new_sizes else 0.0
        for key in recorded.operations
    ]
    repeated = [recorded.recomputed.get(key, 0) for key in recorded.operations]
    counts = [count - again for count, again in zip(recorded.operations.values(), repeated, strict=True)] + repeated
    executed = [*zip(works, counts, strict=True)]
    host_work: dict[HostWork, float] = defaultdict(float)
    device_s: dict[Family, float] = defaultdict(float)
    for work, count in executed:
        for kind, units in work.host_work.items():
            host_work[kind] += count * units
        if count and work.device_s:
            device_s[work.family] += count * work.device_s
    if any(choices):
        host_work["kernel choices"] = sum(choices)
    operations = [parse(key) for key in recorded.operations]
    return PhaseTime(
        dict(host_work),
        dict(device_s),
        sum(count * work.link_s for work, count in executed),
        sum(count * work.cpu_optimizer_s for work, count in executed),
        sum(count * work.unmeasured_s for work, count in executed),
        any(operation.host_waits for operation in operations),
        any(operation.family == "communication" and not operation.reduces for operation in operations),
        recorded.phase,
        _schedule(recorded, works, choices) if device_s and recorded.sequence else None,
    )


def operation_work(key: str, phase: Phase, table: Table, card: Card) -> OperationWork:
    """Return what one execution of an operation needs in ``phase`` on ``card``."""
    operation, host = parse(key), table.host
    family = operation.family
    match family:
        case "communication":
            work: dict[HostWork, float] = {"shards": host.other * operation.moves_shards}
            return OperationWork(family, work, link_s=communication_s(operation, card))
        case "views":
            return OperationWork(family, {"views": host.other * operation.arguments[0]})
        case "checkpoints":
            return OperationWork(family, {"checkpoints": host.other})
        case "modules":
            return OperationWork(family, {"modules": host.other * operation.arguments[0]})
        case "micro-steps":
            return OperationWork(family, {"micro-steps": host.other})
        case "CPU optimizer":
            return OperationWork(family, cpu_optimizer_s=operation.elements / ADAM_PARAMETERS_PER_S)
        case "waiting":
            return OperationWork(family)
    times = table.times(key, card)
    work = {phase: host.operations * times.host_s}
    if phase == "forward" and family == "matrix products":
        work["layers"] = host.other
    unmeasured_s = 0.0 if table.is_measured(key) else times.device_s
    return OperationWork(family, work, times.device_s, unmeasured_s=unmeasured_s)


def _schedule(recorded: RecordedPhase, works: Sequence[OperationWork], choices: Sequence[float]) -> Schedule:
    """Return the order of the operations.

    works: of each distinct operation as one of the phase, then as one of a repeated forward pass. choices: units of
    kernel choices of each distinct operation. The host chooses a kernel before the first execution.
    """
    distinct = len(recorded.operations)
    order = [place + distinct * repeats for place, repeats in zip(recorded.sequence, recorded.repeats, strict=True)]
    remaining = [*choices]
    choices_in_order = [0.0] * len(order)
    for at, place in enumerate(recorded.sequence):
        choices_in_order[at], remaining[place] = remaining[place], 0.0
    return Schedule.build(
        order,
        [work.host_work for work in works],
        [(work.family, work.device_s) for work in works],
        {"kernel choices": choices_in_order},
    )


def communication_s(operation: Operation, card: Card) -> float:
    """Return the seconds of a collective operation.

    Each of n ranks sends (n - 1) / n of the data, twice in an all-reduce.
    """
    ranks = operation.arguments[1]
    rounds = 2 if "allreduce" in operation.name else 1
    rate = LINK_SHARE * (card.link_gb_s or PCIE_GB_S) * 1e9
    return rounds * operation.total_bytes * (ranks - 1) / ranks / rate


def slowest_host(parts: Sequence[PhaseTime], ranks: int) -> list[PhaseTime]:
    """Return the parts with the host time of the rank with the slowest host. The other ranks wait for it.

    The expected maximum of normally distributed times follows the approximation of Blom (1958, Statistical estimates
    and transformed beta-variables).
    """
    slowness = 1 + RANK_SPREAD * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
    return [part._replace(host_work={kind: slowness * work for kind, work in part.host_work.items()}) for part in parts]


def interpolate_parts(
    base: Sequence[PhaseTime], base_tokens: int, other: Sequence[PhaseTime], other_tokens: int, tokens: float
) -> list[PhaseTime]:
    """Estimate the times of a phase's parts for texts of ``tokens`` tokens, from their times for two other lengths.

    base, other: parts of the phase with each of the two batches. base_tokens, other_tokens: lengths of these batches'
    texts. The GPU's time is a linear function of the length; if both batches have about the same length, it is
    proportional to the length.
    """
    if abs(base_tokens - other_tokens) <= SIMILAR_LENGTHS * base_tokens:
        share = tokens / base_tokens if base_tokens else 1.0
        return [part.scaled(1.0, share)._replace(link_s=part.link_s) for part in base]
    weight = (tokens - base_tokens) / (other_tokens - base_tokens)
    base_s, other_s = _seconds_by_family(base), _seconds_by_family(other)
    shares = {
        name: max(0.0, 1 + weight * (other_s.get(name, 0.0) / seconds - 1))
        for name, seconds in base_s.items()
        if seconds
    }
    return [
        part._replace(
            device_s={family: shares.get(family, 1.0) * seconds for family, seconds in part.device_s.items()},
            unmeasured_s=shares.get("unmeasured", 1.0) * part.unmeasured_s,
        )
        for part in base
    ]


def _seconds_by_family(parts: Sequence[PhaseTime]) -> dict[str, float]:
    """Return the GPU's seconds by family of operations.

    The key 'unmeasured' has those of all these seconds that were estimated from similar operations.
    """
    seconds: dict[str, float] = defaultdict(float)
    for part in parts:
        seconds["unmeasured"] += part.unmeasured_s
        for family, family_s in part.device_s.items():
            seconds[family] += family_s
    return seconds
