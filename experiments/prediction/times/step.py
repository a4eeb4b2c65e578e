"""Estimate the time of an optimizer step from the operations that the host starts and the GPU executes."""

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from experiments.prediction.times.clocks import gpu_busy_share, total_seconds
from experiments.prediction.times.host import set_own_hosts, with_measured_host
from experiments.prediction.times.limits import PRECISION_BY_TYPE
from experiments.prediction.times.operations import FAMILIES_WITHOUT_KERNEL, parse
from experiments.prediction.times.phase import PhaseTime, RecordedPhase, interpolate_parts, phase_time, slowest_host
from experiments.prediction.times.table import Table, table_files
from experiments.results.predictions import RowStepTime, StepTime
from experiments.results.schema import Phase
from experiments.suites.cards import Card, card_named
from experiments.suites.row_spec import RowSpec

SAME_CHIP_ERROR, OTHER_CHIP_ERROR, SHARED_ERROR = 0.15, 0.25, 0.6
"""Relative errors of a predicted time: on the measured chip (benchmark step_times), on another chip (assumed), and the
error that several GPUs or an optimizer on the CPU add (the labs print up to 2.1 times the predicted time for FSDP)."""


SCALED_CARD = "h100_80gb"
"""Card whose measured times are scaled to cards without a table of their own."""
PASSES: tuple[Phase, ...] = ("forward", "backward")
TYPICAL_MICRO_STEPS, GOLDEN_RATIO = 8, 0.618034
"""Number of micro-steps whose lengths of texts stand for those of all; and the step with which they are mixed."""
WholePhase = tuple[RecordedPhase, ...]
"""The parts of a phase, in their order."""
TRANSFERS_SHARE = 0.1
"""A step counts as using host memory if transfers from and to the host take a higher share of the GPU's time."""


def step_time(
    recorded: Sequence[RecordedPhase], spec: RowSpec, card: str, planned_micro_steps: int, lengths: Sequence[float] = ()
) -> RowStepTime | None:
    """Return the time of an optimizer step of a traced row on ``card``.

    Returns None if no step was traced, or if the card emulates the row's data type, because the slowdown is unknown.

    lengths: of the batches' texts, tokens; (): those of the traced batches. planned_micro_steps:
    micro-steps of the full-length training.
    """
    table, target = table_for_card(card), card_named(card)
    if not _has_step(recorded) or target.computes_in_software(spec.settings.precision):
        return None
    accumulate = spec.settings.accumulate
    typical = typical_steps(lengths, accumulate)
    steps = phases_of_steps(recorded, accumulate, typical, table, target, share_of_new(lengths))
    shared_error = SHARED_ERROR if spec.settings.world_size > 1 or spec.settings.uses_host_memory else 0.0
    return RowStepTime(
        **dict(_build_time(steps, table, card, shared_error)),
        ratio_error_share=SAME_CHIP_ERROR + shared_error,
        planned_micro_steps=planned_micro_steps,
    )


def program_step_time(recorded: Sequence[RecordedPhase], card: str, ranks: int) -> StepTime | None:
    """Return the time of an optimizer step of a program on ``card``.

    Returns None if no step was traced, or if the card emulates the data type of the program's matrix products.

    recorded: the phases of one step, in their order.
    """
    table, target = table_for_card(card), card_named(card)
    if not recorded or any(target.computes_in_software(name) for name in _precisions(recorded)):
        return None
    phases = slowest_host([phase_time(one, table, target) for one in recorded], ranks_of(recorded))
    shared = ranks > 1 or _uses_host_memory(phases)
    return _build_time([phases], table, card, SHARED_ERROR if shared else 0.0)


def _share(part: float, whole: float) -> float:
    """Return part / whole, limited to 0 to 1: with extrapolated times, the quotient can be slightly outside."""
    return min(1.0, max(0.0, part / whole)) if whole else 0.0


def _uses_host_memory(phases: Sequence[PhaseTime]) -> bool:
    """Return whether an optimizer works on the CPU, or transfers from and to the host take much time of the GPU."""
    transfers_s = sum(phase.device_s.get("host transfers", 0.0) for phase in phases)
    busy_s = sum(phase.gpu_s for phase in phases)
    return any(phase.cpu_optimizer_s for phase in phases) or transfers_s > TRANSFERS_SHARE * busy_s


def _precisions(recorded: Sequence[RecordedPhase]) -> set[str]:
    """Return the data types in which matrix products and attention compute, such as bf16."""
    operations = (parse(key) for one in recorded for key in one.operations)
    return {PRECISION_BY_TYPE.get(operation.data_type, "") for operation in operations if operation.flop}


def _build_time(steps: Sequence[list[PhaseTime]], table: Table, card: str, shared_error: float) -> StepTime:
    """Return the average time of a step. steps: the parts of each of several steps that follow each other."""
    count, phases = len(steps), [*itertools.chain(*steps)]
    error = (SAME_CHIP_ERROR if table.has_chip_of(card) else OTHER_CHIP_ERROR) + shared_error
    busy_share = gpu_busy_share(phases)
    shares_with_errors = [
        gpu_busy_share([phase.scaled(1 + sign * error, 1 - sign * error) for phase in phases]) for sign in (1, -1)
    ]
    seconds_by_family: dict[str, float] = defaultdict(float)
    for phase in phases:
        for family, family_s in phase.device_s.items():
            seconds_by_family[family] += family_s / count
    return StepTime(
        step_s=total_seconds(phases) / count,
        error_share=error,
        gpu_busy_share=busy_share,
        gpu_busy_share_error=max(abs(share - busy_share) for share in shares_with_errors),
        host_s=sum(phase.host_s + phase.cpu_optimizer_s for phase in phases) / count,
        cpu_optimizer_s=sum(phase.cpu_optimizer_s for phase in phases) / count,
        link_s=sum(phase.link_s for phase in phases) / count,
        device_s=dict(seconds_by_family),
        measured_on=table.machine.gpu,
        host_is_measured=table.host.is_measured or (table.is_own and table.has_chip_of(card)),
        unmeasured_share=_share(sum(phase.unmeasured_s for phase in phases) / count, sum(seconds_by_family.values())),
    )


def _has_step(recorded: Sequence[RecordedPhase]) -> bool:
    return any(one.phase == "optimizer step" for one in recorded)


def typical_steps(lengths: Sequence[float], accumulate: int) -> list[Sequence[float] | None]:
    """Return the lengths of the batches' texts in each micro-step of a few typical steps; [None] without texts.

    The lengths are evenly spaced quantiles of ``lengths``, in an order in which long and short ones alternate.
    """
    if not lengths:
        return [None]
    count = accumulate * math.ceil(TYPICAL_MICRO_STEPS / accumulate)
    ordered = sorted(lengths)
    quantiles = [ordered[int((place + 0.5) / count * len(ordered))] for place in range(count)]
    mixed = [quantiles[place] for place in sorted(range(count), key=lambda place: place * GOLDEN_RATIO % 1)]
    return [mixed[begin : begin + accumulate] for begin in range(0, count, accumulate)]


def share_of_new(lengths: Sequence[float], first: int = 0) -> float:
    """Return the share of the batches from number ``first`` on whose length no earlier batch had; 0 without batches."""
    new = set(lengths) - set(lengths[:first])
    return len(new) / (len(lengths) - first) if lengths[first:] else 0.0


def phases_of_step(
    recorded: Sequence[RecordedPhase],
    accumulate: int,
    tokens: Sequence[float] | None,
    table: Table,
    card: Card,
    new_lengths: float = 0.0,
) -> list[PhaseTime]:
    """Return the parts of a step's phases: forward and backward pass of each micro-step, then the optimizer's step.

    tokens: length of the batch's texts in each micro-step; None: the lengths of the traced batches. new_lengths: share
    of the micro-steps in which the texts have a length that no earlier batch had.
    """
    return phases_of_steps(recorded, accumulate, [tokens], table, card, new_lengths)[0]


def phases_of_steps(
    recorded: Sequence[RecordedPhase],
    accumulate: int,
    steps: Sequence[Sequence[float] | None],
    table: Table,
    card: Card,
    new_lengths: float = 0.0,
) -> list[list[PhaseTime]]:
    """Return for each of ``steps`` what ``phases_of_step`` returns for its lengths."""
    pairs, varying_keys = parts_of_step(recorded, accumulate), varying_operations(recorded)
    times = {
        id(part): phase_time(part, table, card, dict.fromkeys(new_keys, new_lengths))
        for whole in itertools.chain(*pairs)
        for part, new_keys in zip(whole, _first_occurrences(whole, varying_keys), strict=True)
    }
    ranks = ranks_of(recorded)
    return [slowest_host(interpolated_phases(pairs, times, tokens), ranks) for tokens in steps]


def ranks_of(recorded: Sequence[RecordedPhase]) -> int:
    """Return the number of ranks in the largest collective operation; 1 without any."""
    operations = (parse(key) for part in recorded for key in part.operations)
    return max((one.arguments[1] for one in operations if one.family == "communication"), default=1)


def varying_operations(recorded: Sequence[RecordedPhase]) -> set[str]:
    """Return the keys of the operations that not every micro-step of the trace has: their sizes vary."""
    wholes: dict[Phase, list[WholePhase]] = defaultdict(list)
    for whole in whole_phases(recorded):
        wholes[whole[0].phase].append(whole)
    keys: set[str] = set()
    for wholes_of_phase in wholes.values():
        counts = Counter(key for whole in wholes_of_phase for key in {key for part in whole for key in part.operations})
        keys |= {key for key, count in counts.items() if count < len(wholes_of_phase)}
    return keys


def _first_occurrences(whole: WholePhase, keys: Set[str]) -> Iterator[set[str]]:
    """Yield for each part of a phase those of ``keys`` that occur in this part for the first time."""
    remaining = set(keys)
    for part in whole:
        new_keys = remaining & part.operations.keys()
        remaining -= new_keys
        yield new_keys


def interpolated_phases(
    pairs: Sequence[tuple[WholePhase, WholePhase]], times: Mapping[int, PhaseTime], tokens: Sequence[float] | None
) -> list[PhaseTime]:
    """Return the times of the parts of a step's phases.

    pairs: the result of ``parts_of_step``. times: time of each recorded part, by the part's id. tokens: length of the
    batches' texts; None: the length of each traced batch.
    """
    times_of_step: list[PhaseTime] = []
    for number, (base, other) in enumerate(pairs):
        base_times, other_times = ([times[id(part)] for part in whole] for whole in (base, other))
        if tokens is not None and base[0].phase != "optimizer step":
            length = tokens[number // len(PASSES)]
            base_times = interpolate_parts(base_times, base[0].tokens, other_times, other[0].tokens, length)
        times_of_step += base_times
    return times_of_step


def parts_of_step(recorded: Sequence[RecordedPhase], accumulate: int) -> list[tuple[WholePhase, WholePhase]]:
    """Return the phases of a step as pairs: a phase, and the same phase with a batch of another length.

    A step consists of the first micro-step, of further ones that add up gradients, of the last one, in which GPUs
    reduce the gradients, and of the optimizer's step. The last traced micro-step has the longest batch.
    """
    whole = whole_phases(recorded)
    passes = {phase: [one for one in whole if one[0].phase == phase] for phase in PASSES}
    first = accumulate if accumulate > 1 else 0
    later = first + 1 if accumulate > 2 else min(1, accumulate - 1)
    places = [first, *[later] * (accumulate - 2)] if accumulate > 1 else []
    pairs = [(passes[phase][place], passes[phase][-1]) for place in places for phase in passes]
    pairs += [(passes[phase][-1], passes[phase][later]) for phase in passes]
    last = [one for one in whole if one[0].phase == "optimizer step"][-1]
    return [*pairs, (last, last)]


def whole_phases(recorded: Sequence[RecordedPhase]) -> list[WholePhase]:
    """Return one tuple for each phase, which contains the parts of the phase."""
    return [tuple(parts) for _, parts in itertools.groupby(recorded, key=lambda part: part.phase)]


@functools.cache
def tables() -> tuple[Table, ...]:
    """Return all tables. Each process reads them once."""
    found = {path: Table.read(path) for path in table_files()}
    set_own_hosts(found)
    return tuple(found.values())


def table_for_card(card: str) -> Table:
    """Return the table of the card, or else one of its chip, or else that of SCALED_CARD, for this user's host."""

    def priority(table: Table) -> tuple[bool, bool, bool]:
        return table.machine.card == card, table.has_chip_of(card), table.machine.card == SCALED_CARD

    return with_measured_host(max(tables(), key=priority), card)


def needed_operations(recorded: Sequence[RecordedPhase], accumulate: int) -> set[str]:
    """Return the keys of the operations that the time of a step needs; none if no step was traced."""
    if not _has_step(recorded):
        return set()
    return {
        key
        for pair in parts_of_step(recorded, accumulate)
        for one in itertools.chain(*pair)
        for key in one.operations
        if parse(key).family not in FAMILIES_WITHOUT_KERNEL
    }
