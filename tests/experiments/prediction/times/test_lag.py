"""The clocks of host and GPU during a training, which decide when the GPU no longer uses a block."""

import pytest

from experiments.prediction.times.clocks import QUEUED_OPERATIONS
from experiments.prediction.times.lag import ClockPoint, clock_points, delay_host, queue_waits
from experiments.prediction.times.phase import HOST_FACTORS, PhaseTime
from experiments.prediction.times.schedule import Schedule


def part(host_s: float, gpu_s: float, **times) -> PhaseTime:
    return PhaseTime({"forward": host_s / HOST_FACTORS["forward"]}, {"matrix products": gpu_s}, **times)


def lag_s(point: ClockPoint) -> float:
    return round(point.gpu_s - point.host_s, 9)


def test_a_busy_gpu_lags_behind_more_with_each_part():
    *_, first, _, second = clock_points(10, [(20, part(1, 3)), (30, part(1, 3))])
    assert (first.operations, lag_s(first)) == (20, 2)
    assert (second.operations, lag_s(second)) == (30, 4)


def test_a_gpu_that_waits_for_the_host_does_not_lag_behind():
    assert [lag_s(point) for point in clock_points(0, [(10, part(3, 1)), (20, part(3, 1))])] == [0] * 5


def test_the_gpu_catches_up_within_a_part_that_needs_more_time_of_the_host():
    points = clock_points(0, [(11, part(0, 2)), (22, part(6, 2))])
    assert ClockPoint(16, 3.0, 3.0) in points


def test_a_gather_delays_the_gpu_only_at_the_end_of_its_part():
    *_, before, after = clock_points(0, [(10, part(3, 1, link_s=2.0, gathers=True))])
    assert (before.operations, lag_s(before), after.operations, lag_s(after)) == (9, 0, 10, 2)


def test_a_wait_for_the_gpu_ends_the_lag():
    *_, before, after = clock_points(0, [(10, part(1, 3, host_waits=True))])
    assert (lag_s(before), lag_s(after)) == (2, 0)


def test_a_wait_for_an_event_delays_the_host_until_the_gpu_has_executed_what_came_before():
    points = [ClockPoint(0, 0.0, 0.0), ClockPoint(10, 1.0, 5.0)]
    delayed = [tuple(round(value, 6) for value in point) for point in delay_host(points, [(6, 4), (8, 2)])]
    assert delayed == [(0, 0, 0), (6, 0.6, 3), (6, 2, 3), (8, 2.2, 4), (8, 2.2, 4), (10, 2.4, 5)]


def test_a_delay_ends_where_the_host_waits_for_the_gpu_anyway():
    step = part(1, 10, host_waits=True)
    points = clock_points(0, [(10_000 * number, step) for number in (1, 2, 3)])
    ends = [point for point in delay_host(points, queue_waits(points)) if point.operations in (10_000, 20_000, 30_000)]
    assert [(round(point.host_s), round(point.gpu_s)) for point in ends] == [(10, 10), (20, 20), (30, 30)]


def test_a_part_without_operations_adds_no_point():
    points = clock_points(0, [(10, part(1, 3)), (10, part(0, 0)), (20, part(1, 3))])
    assert [point.operations for point in points] == sorted(point.operations for point in points)


def test_the_host_waits_while_the_queue_of_operations_is_full():
    points = [ClockPoint(100, 0.0, 0.0), ClockPoint(100 + 2 * QUEUED_OPERATIONS, 1.0, 30.0)]
    (first, waited_for), *_, (last, _) = queue_waits(points)
    assert (first, waited_for) == (100 + QUEUED_OPERATIONS, 100)
    assert last < points[-1].operations
    *_, end = delay_host(points, queue_waits(points))
    assert 30 - end.host_s == pytest.approx(30 / 2, rel=0.15)


def test_the_clocks_before_the_waits_have_no_limit_of_the_queue():
    schedule = Schedule.build([0] * 2000, [{"forward": 1.0}], [("matrix products", 1.0)])
    *_, end = clock_points(0, [(2000, part(1, 2000, schedule=schedule))])
    assert end.host_s == pytest.approx(1)


def test_a_wait_before_the_first_point_is_ignored():
    points = [ClockPoint(5, 0.0, 0.0), ClockPoint(10, 1.0, 5.0)]
    assert [*delay_host(points, [(3, 2)])] == points
