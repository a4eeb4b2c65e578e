"""Estimate the time of an optimizer step from the operations that the host starts and the GPU executes."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from experiments.prediction.times.limits import TENSOR_TYPES
from experiments.prediction.times.operations import Family, Operation, parse
from experiments.prediction.times.table import Table, table_files
from experiments.results.predictions import RowStepTime, StepTime
from experiments.results.schema import Phase
from experiments.suites.cards import Card, card_named
from experiments.suites.row_spec import RowSpec

HOST_FACTORS: Mapping[Phase, float] = {"forward": 5.0, "backward": 1.25, "optimizer step": 5.0}
"""Host time of a phase divided by the host time of its operations alone. Python, modules and autograd add to it, least
in the backward pass, which runs in C++. The activations that it recomputes have the factor of the forward pass. Fitted
and cross-validated by the benchmark step_times."""
LINK_GB_S = 20.0
"""Rate of collective operations between GPUs, for PCIe 4.0 with 16 lanes (assumed)."""
ADAM_PARAMETERS_PER_S = 1e9
"""Parameters that DeepSpeed's CPU Adam updates in a second on a host of 64 cores (measured: 13B in 12 s)."""
ERROR, OTHER_CHIP_ERROR, SHARED_ERROR = 0.15, 0.25, 0.6
"""Relative errors of a predicted time: on the measured chip (benchmark step_times), on another chip (assumed), and the
error that several GPUs or an optimizer on the CPU add (the labs print up to 2.1 times the predicted time for FSDP)."""


SCALED_CARD = "h100_80gb"
"""Card whose measured times are scaled to cards without a table of their own."""
TRANSFERS_SHARE = 0.1
"""Share of the GPU's time from which transfers from and to the host count as use of host memory."""


class RecordedPhase(NamedTuple):
    """The operations of one phase of a step, with the number of executions of each.

    tokens: length of the batch's texts. recomputed: those of ``operations`` that repeat a forward pass during a
    backward pass (activation checkpointing).
    """

    phase: Phase
    tokens: int
    operations: Mapping[str, int]
    recomputed: Mapping[str, int] = {}


class PhaseTime(NamedTuple):
    """Seconds that a phase needs: of the host, of the GPU by family of operations, and of the links between GPUs.

    operations_s: seconds of the host for the operations alone, by the phase whose factor applies. cpu_optimizer_s:
    seconds in which the optimizer works on the CPU while the GPU waits. unmeasured_s: those of ``device_s`` that were
    estimated from similar operations.
    """

    operations_s: Mapping[Phase, float]
    device_s: Mapping[Family, float]
    link_s: float = 0.0
    cpu_optimizer_s: float = 0.0
    unmeasured_s: float = 0.0

    @property
    def host_s(self) -> float:
        """Return the seconds in which the host works."""
        return self.host_s_with_factors(HOST_FACTORS)

    def host_s_with_factors(self, factors: Mapping[Phase, float]) -> float:
        """Return the seconds in which the host works, with other factors than HOST_FACTORS."""
        return sum(factors[phase] * phase_s for phase, phase_s in self.operations_s.items())

    @property
    def device_busy_s(self) -> float:
        """Return the seconds in which the GPU or its links work; they work at the same time."""
        return max(sum(self.device_s.values()), self.link_s)

    @property
    def kernels_s(self) -> float:
        """Return the seconds in which kernels run on the GPU; transfers from and to the host run none."""
        return max(sum(self.device_s.values()) - self.device_s.get("host transfers", 0.0), self.link_s)

    def scaled(self, host: float, device: float) -> "PhaseTime":
        """Return the time with the host's seconds multiplied by ``host``, those of GPU and links by ``device``."""
        operations_s = {phase: host * phase_s for phase, phase_s in self.operations_s.items()}
        device_s = {family: device * family_s for family, family_s in self.device_s.items()}
        return PhaseTime(
            operations_s, device_s, device * self.link_s, host * self.cpu_optimizer_s, device * self.unmeasured_s
        )

    def interpolated(self, tokens: float, own_tokens: int, other: "PhaseTime", other_tokens: int) -> "PhaseTime":
        """Return the time for a batch of ``tokens``, linear between this batch and ``other``."""
        if own_tokens == other_tokens:
            share = tokens / own_tokens if own_tokens else 1.0
            device_s = {family: share * s for family, s in self.device_s.items()}
            return self._replace(device_s=device_s, unmeasured_s=share * self.unmeasured_s)
        weight = (tokens - own_tokens) / (other_tokens - own_tokens)
        families = {*self.device_s, *other.device_s}
        pairs = {family: (self.device_s.get(family, 0.0), other.device_s.get(family, 0.0)) for family in families}
        return self._replace(
            device_s={family: a + weight * (b - a) for family, (a, b) in pairs.items()},
            unmeasured_s=self.unmeasured_s + weight * (other.unmeasured_s - self.unmeasured_s),
        )


def step_time(
    recorded: Sequence[RecordedPhase], spec: RowSpec, card: str, planned: int, tokens: float | None = None
) -> RowStepTime | None:
    """Return the time of an optimizer step of a traced row on ``card``.

    Returns None if no step was traced, or if the card emulates the row's data type, because the slowdown is unknown.

    tokens: average length of a batch's texts; None: the length of the first batches. planned: micro-steps of the
    full-length training.
    """
    table, target = table_for_card(card), card_named(card)
    if not _has_step(recorded) or target.emulates(spec.settings.precision):
        return None
    phases = phases_of_step(recorded, spec.settings.accumulate, tokens, table, target)
    shared_error = SHARED_ERROR if spec.settings.world_size > 1 or spec.settings.uses_host_memory else 0.0
    return RowStepTime(
        **dict(_build_time(phases, table, card, shared_error)),
        ratio_error_share=ERROR + shared_error,
        planned_micro_steps=planned,
    )


def program_step_time(recorded: Sequence[RecordedPhase], card: str, ranks: int) -> StepTime | None:
    """Return the time of an optimizer step of a program on ``card``.

    Returns None if no step was traced, or if the card emulates the data type of the program's matrix products.

    recorded: the phases of one step, in their order.
    """
    table, target = table_for_card(card), card_named(card)
    if not recorded or any(target.emulates(name) for name in _precisions(recorded)):
        return None
    phases = [phase_time(one, table, target) for one in recorded]
    shared = ranks > 1 or _uses_host_memory(phases)
    return _build_time(phases, table, card, SHARED_ERROR if shared else 0.0)


def _share(part: float, whole: float) -> float:
    """Return part / whole, from 0 to 1: extrapolated times can be a little outside of it."""
    return min(1.0, max(0.0, part / whole)) if whole else 0.0


def _uses_host_memory(phases: Sequence[PhaseTime]) -> bool:
    """Return whether an optimizer works on the CPU, or transfers from and to the host take much time of the GPU."""
    transfers_s = sum(phase.device_s.get("host transfers", 0.0) for phase in phases)
    device_busy_s = sum(sum(phase.device_s.values()) for phase in phases)
    return any(phase.cpu_optimizer_s for phase in phases) or transfers_s > TRANSFERS_SHARE * device_busy_s


def _precisions(recorded: Sequence[RecordedPhase]) -> set[str]:
    """Return the data types in which matrix products and attention compute, such as bf16."""
    operations = (parse(key) for one in recorded for key in one.operations)
    return {TENSOR_TYPES.get(operation.data_type, "") for operation in operations if operation.flop}


def _build_time(phases: Sequence[PhaseTime], table: Table, card: str, shared_error: float) -> StepTime:
    error = (ERROR if table.has_chip_of(card) else OTHER_CHIP_ERROR) + shared_error
    busy = gpu_busy_share(phases)
    extremes = [
        gpu_busy_share([phase.scaled(1 + sign * error, 1 - sign * error) for phase in phases]) for sign in (1, -1)
    ]
    families: dict[str, float] = defaultdict(float)
    for phase in phases:
        for family, family_s in phase.device_s.items():
            families[family] += family_s
    return StepTime(
        step_s=total_seconds(phases),
        error_share=error,
        gpu_busy_share=busy,
        gpu_busy_error=max(abs(one - busy) for one in extremes),
        host_s=sum(phase.host_s + phase.cpu_optimizer_s for phase in phases),
        cpu_optimizer_s=sum(phase.cpu_optimizer_s for phase in phases),
        link_s=sum(phase.link_s for phase in phases),
        device_s=dict(families),
        measured_on=table.machine.gpu,
        unmeasured_share=_share(sum(phase.unmeasured_s for phase in phases), sum(families.values())),
    )


def _has_step(recorded: Sequence[RecordedPhase]) -> bool:
    return any(one.phase == "optimizer step" for one in recorded)


def phases_of_step(
    recorded: Sequence[RecordedPhase], accumulate: int, tokens: float | None, table: Table, card: Card
) -> list[PhaseTime]:
    """Return the phases of a step: forward and backward of each micro-step, then the optimizer's.

    tokens: average length of the batches' texts; None: the length of each traced batch.
    """
    parts = parts_of_step(recorded, accumulate)
    distinct = {id(one): one for part in parts for one in part}
    times = {number: phase_time(one, table, card) for number, one in distinct.items()}
    return interpolated_phases(parts, times, tokens)


def interpolated_phases(
    parts: Sequence[tuple[RecordedPhase, RecordedPhase]], times: Mapping[int, PhaseTime], tokens: float | None
) -> list[PhaseTime]:
    """Return the times of a step's phases for batches of ``tokens``; None: of the traced batches.

    parts: as ``parts_of_step`` returns. times: by the id of the recorded phase.
    """
    found = []
    for own, longest in parts:
        time = times[id(own)]
        if tokens is not None and own.phase != "optimizer step":
            time = time.interpolated(tokens, own.tokens, times[id(longest)], longest.tokens)
        found.append(time)
    return found


def parts_of_step(recorded: Sequence[RecordedPhase], accumulate: int) -> list[tuple[RecordedPhase, RecordedPhase]]:
    """Return the phases of a step as pairs: with an ordinary batch, and with the longest batch.

    A step consists of the first micro-step, the others, which add up gradients, and the optimizer's step. The
    longest batch is that of the last traced micro-step.
    """
    passes = {phase: [one for one in recorded if one.phase == phase] for phase in ("forward", "backward")}
    first = accumulate if accumulate > 1 else 0
    later = first + 1 if accumulate > 2 else 1
    places = [later if number else first for number in range(accumulate)]
    parts = [(passes[phase][place], passes[phase][-1]) for place in places for phase in passes]
    last = [one for one in recorded if one.phase == "optimizer step"][-1]
    return [*parts, (last, last)]


def phase_time(recorded: RecordedPhase, table: Table, card: Card) -> PhaseTime:
    """Return the seconds of a phase on ``card``."""
    operations_s: dict[Phase, float] = defaultdict(float)
    device_s: dict[Family, float] = defaultdict(float)
    link_s = cpu_optimizer_s = unmeasured_s = 0.0
    for key, count in recorded.operations.items():
        operation = parse(key)
        if operation.family == "communication":
            link_s += count * communication_s(operation)
        elif operation.family == "CPU optimizer":
            cpu_optimizer_s += count * operation.elements / ADAM_PARAMETERS_PER_S
        else:
            times = table.times(key, card)
            device_s[operation.family] += count * times.device_s
            unmeasured_s += 0.0 if table.is_measured(key) else count * times.device_s
            recomputed = recorded.recomputed.get(key, 0)
            operations_s["forward"] += recomputed * times.host_s
            operations_s[recorded.phase] += (count - recomputed) * times.host_s
    return PhaseTime(dict(operations_s), dict(device_s), link_s, cpu_optimizer_s, unmeasured_s)


def communication_s(operation: Operation) -> float:
    """Return the seconds of a collective operation: each rank sends (n - 1) / n of the data, twice in an all-reduce."""
    ranks = operation.arguments[1]
    rounds = 2 if "allreduce" in operation.name else 1
    return rounds * operation.total_bytes * (ranks - 1) / ranks / (LINK_GB_S * 1e9)


def total_seconds(phases: Sequence[PhaseTime], factors: Mapping[Phase, float] = HOST_FACTORS) -> float:
    """Return the seconds of one of many equal steps: host and GPU work in parallel, so the slower one limits.

    factors: of the host's time.
    The model ignores that the host waits when it reads a value from the GPU: modeling it made the times less accurate.
    """
    host_s = sum(phase.host_s_with_factors(factors) for phase in phases)
    device_busy_s = sum(phase.device_busy_s for phase in phases)
    return max(host_s, device_busy_s) + sum(phase.cpu_optimizer_s for phase in phases)


@functools.cache
def tables() -> tuple[Table, ...]:
    """Return all tables. Each process reads them once."""
    return tuple(map(Table.read, table_files()))


def table_for_card(card: str) -> Table:
    """Return the table of the card, or else one of its chip, or else that of SCALED_CARD."""

    def priority(table: Table) -> tuple[bool, bool, bool]:
        return table.machine.card == card, table.has_chip_of(card), table.machine.card == SCALED_CARD

    return max(tables(), key=priority)


def needed_operations(recorded: Sequence[RecordedPhase], accumulate: int) -> set[str]:
    """Return the keys of the operations that the time of a step needs; none if no step was traced."""
    if not _has_step(recorded):
        return set()
    return {
        key
        for one in (one for pair in parts_of_step(recorded, accumulate) for one in pair)
        for key in one.operations
        if parse(key).family not in ("communication", "CPU optimizer")
    }


def gpu_busy_share(phases: Sequence[PhaseTime]) -> float:
    """Return the share of a step in which kernels run on the GPU."""
    return min(1.0, sum(phase.kernels_s for phase in phases) / total_seconds(phases))


def average_tokens(lengths: Sequence[int]) -> float | None:
    """Return the average length of the batches' texts, tokens; None without texts."""
    return fmean(lengths) if lengths else None
