"""Estimate the time of a step: the host starts operations, and the device, the links and the CPU's optimizer execute them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments.prediction.times.operations import Family, parse
from experiments.prediction.times.table import Table
from experiments.results.schema import Phase
from experiments.suites.cards import Card

HOST_FACTOR: Mapping[str, float] = {"forward": 1.0, "backward": 1.0, "optimizer step": 1.0}
LINK_GB_S = 20.0
HOST_LINK_GB_S = 12.0
ADAM_PARAMETERS_S = 1e9


class Work(NamedTuple):
    """The operations of one phase of a step, with how often each is executed."""

    phase: Phase
    operations: Mapping[str, int]


class PhaseTime(NamedTuple):
    """Seconds of the resources that a phase needs: host, device by family, links between GPUs."""

    host_s: float
    device_s: Mapping[Family, float]
    link_s: float
    waits: bool

    @property
    def total_device_s(self) -> float:
        return sum(self.device_s.values())


def phase_time(work: Work, table: Table, card: Card) -> PhaseTime:
    device: dict[Family, float] = defaultdict(float)
    host_s = link_s = 0.0
    waits = False
    for key, count in work.operations.items():
        operation = parse(key)
        if operation.name.startswith("communication::"):
            link_s += count * communication_s(operation.total_bytes, operation.arguments[-1], operation.name)
            continue
        if operation.name == "host::adam":
            host_s += count * operation.arguments[0]["sizes"][0] / ADAM_PARAMETERS_S
            waits = True
            continue
        times = table.times(key, card)
        device[operation.family] += count * times.device_s
        host_s += count * (min(times.host_s, 5e-5))
        waits = waits or operation.waits_for_the_gpu
    return PhaseTime(host_s * HOST_FACTOR.get(work.phase, 1.0), device, link_s, waits)


def communication_s(size: int, ranks: int, name: str) -> float:
    rounds = 2 if "allreduce" in name else 1
    return rounds * size * (ranks - 1) / ranks / (LINK_GB_S * 1e9)


def step_s(phases: Sequence[PhaseTime]) -> float:
    """Return the seconds of a step in a long row of equal steps.

    The device works off what the host has started, and never more. What it has not finished at the end of a phase it
    finishes during the next, unless the host waits for it.
    """
    behind = total = 0.0
    for one in phases:
        device_s = max(one.total_device_s, one.link_s)
        ends = max(behind + device_s, one.host_s) if device_s else max(behind, one.host_s)
        behind = ends - one.host_s
        total += one.host_s
        if one.waits:
            total, behind = total + behind, 0.0
    return max(total, sum(max(one.total_device_s, one.link_s) for one in phases))
