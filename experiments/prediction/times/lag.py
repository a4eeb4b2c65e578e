"""Compute how far the GPU lags behind the host. The lag delays the release of memory that several streams use.

PyTorch's allocator frees such memory at the first allocation after the GPU has executed what the host had started on
these streams before the release (c10/cuda/CUDACachingAllocator.cpp, insert_events and process_events). FSDP is an
example: it gathers parameters on a stream of its own, so autograd also uses each gradient on this stream. If the GPU
lags behind, the optimizer's temporary tensors are allocated before the gradients are freed.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.clocks import QUEUED_OPERATIONS, Clocks
from experiments.prediction.times.phase import HOST_FACTORS, PhaseTime, RecordedPhase, phase_time
from experiments.prediction.times.step import table_for_card
from experiments.suites.cards import card_named


class ClockPoint(NamedTuple):
    """A number of operations, and the times, in seconds, at which the host has started and the GPU executed them."""

    operations: int
    host_s: float
    gpu_s: float


def set_clocks_of(card: str, phantom: Phantom, recorded: Sequence[RecordedPhase]) -> None:
    """Make ``phantom`` replay its log with the clocks of ``card``, which begin at the end of the first optimizer step.

    recorded: all phases of the training. If they contain no second step, memory that several streams use is free at its
    release. The same holds in the first step: the host loads kernels and reserves memory, so the GPU does not lag
    behind.
    """
    table, target = table_for_card(card), card_named(card)
    later = _after_first_step(recorded)
    begin = recorded[-len(later) - 1].end if later else 0
    points = clock_points(begin, ((part.end, phase_time(part, table, target)) for part in later))
    phantom.set_clocks([*delay_host(points, sorted([*phantom.waits(), *queue_waits(points)]))])


def clock_points(begin: int, parts: Iterable[tuple[int, PhaseTime]]) -> list[ClockPoint]:
    """Return the clocks from operation ``begin`` on, when no work is left. parts: end and time of each part."""
    clocks, points = Clocks(queued_operations=None), [ClockPoint(begin, 0.0, 0.0)]
    for end, time in parts:
        if end == points[-1].operations:
            continue
        points += _points_in_part(points[-1], end - 1, time)
        clocks.run(time.without_waits, HOST_FACTORS)
        points.append(ClockPoint(end - 1, clocks.host_s, clocks.gpu_s))
        clocks.run(time.waits, HOST_FACTORS)
        points.append(ClockPoint(end, clocks.host_s, clocks.gpu_s))
    return points


def queue_waits(points: Sequence[ClockPoint]) -> Iterator[tuple[int, int]]:
    """Yield the waits (see ``delay_host``) of a host that never is more than QUEUED_OPERATIONS ahead of the GPU."""
    for started in range(points[0].operations + QUEUED_OPERATIONS, points[-1].operations, QUEUED_OPERATIONS // 8):
        yield started, started - QUEUED_OPERATIONS


def _after_first_step(recorded: Sequence[RecordedPhase]) -> Sequence[RecordedPhase]:
    """Return the parts of phases after the first optimizer step; none if there is no step."""
    for number, (part, following) in enumerate(itertools.pairwise(recorded), start=1):
        if part.phase == "optimizer step" and following.phase != "optimizer step":
            return recorded[number:]
    return ()


def _points_in_part(begin: ClockPoint, end: int, time: PhaseTime) -> Iterator[ClockPoint]:
    """Yield the point at which a GPU that lags behind catches up with the host before ``end``, if it does."""
    lag_s, gained_s = begin.gpu_s - begin.host_s, time.host_s - time.gpu_s
    if 0 < lag_s < gained_s:
        share = lag_s / gained_s
        caught_up_s = begin.host_s + share * time.host_s
        yield ClockPoint(begin.operations + round(share * (end - begin.operations)), caught_up_s, caught_up_s)


def delay_host(points: Sequence[ClockPoint], waits: Iterable[tuple[int, int]]) -> Iterator[ClockPoint]:
    """Yield the points, with the host's times delayed by its waits for events, and two points for each wait.

    points: at least one. waits: for each wait, in ascending order, the number of operations that the host had started
    before, and the number of operations that the GPU had to execute until the wait ended. Where the GPU does not lag
    behind, an earlier delay no longer counts: the GPU was delayed with the host, or the host waited for the GPU anyway.
    """
    numbers, host_s, gpu_s = (np.array(column, float) for column in zip(*points, strict=True))

    def time_after(operations: int, clock: Any) -> float:
        return float(np.interp(operations, numbers, clock))

    waiting = [
        (ClockPoint(at, time_after(at, host_s), time_after(at, gpu_s)), waited_for)
        for at, waited_for in waits
        if at >= points[0].operations
    ]
    delay_s = 0.0
    for point, waited_for in heapq.merge(
        ((point, None) for point in points), waiting, key=lambda pair: pair[0].operations
    ):
        if waited_for is None and point.host_s >= point.gpu_s:
            delay_s = 0.0
        yield point._replace(host_s=point.host_s + delay_s)
        if waited_for is not None:
            delay_s += max(0.0, time_after(waited_for, gpu_s) - point.host_s - delay_s)
            yield point._replace(host_s=point.host_s + delay_s)
