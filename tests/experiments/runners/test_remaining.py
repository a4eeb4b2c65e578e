"""The remaining time of a run."""

import pytest

from experiments.results.schema import Progress, StageTimes
from experiments.runners.progress import RowState
from experiments.runners.remaining import ExpectedTime, RemainingTime, makespan_s
from tests.support.results.in_memory import result
from tests.support.runners import rows as sample_rows


def spec(row):
    return sample_rows.spec(row)


def state(left_s=None, elapsed_s=10.0, row="a"):
    at = Progress(phase="forward", step=1, micro_steps=1, planned_micro_steps=9, left_s=left_s)
    return RowState(spec(row), elapsed_s, at)


def ended(start_s=1.0):
    times = StageTimes(start_s=start_s, build_s=1.0, train_s=1.0, end_s=1.0)
    return result("a").model_copy(update={"times": times})


def estimate_s(remaining, running, waiting, size=1):
    return remaining.estimate_s(running, waiting, lambda spec: 1, size)


@pytest.mark.parametrize(
    ("rows", "gpus", "seconds"),
    [
        ([], 4, 0),
        ([(10, 1), (20, 1), (30, 1)], 1, 60),
        ([(10, 1), (20, 1), (30, 1)], 2, 40),
        ([(10, 1), (20, 4), (5, 1)], 4, 35),
        ([(10, 8)], 4, 10),
        ([(10, 0), (10, 0)], 2, 20),
    ],
)
def test_each_row_starts_as_soon_as_its_gpus_are_free(rows, gpus, seconds):
    assert makespan_s(rows, gpus) == seconds


@pytest.mark.parametrize(
    ("times_s", "states", "waiting", "left_s"),
    [
        ([], [state()], 0, None),
        ([], [state(5.0)], 1, None),
        ([], [state(5.0)], 0, 5.0),
        ([20.0], [state(5.0)], 0, 5.0),
        ([20.0, 40.0], [state()], 0, 20.0),
        ([20.0], [state(30.0), state(10.0)], 3, 50.0),
        ([20.0], [state(90.0), state(10.0)], 1, 90.0),
        ([20.0], [], 4, 40.0),
        ([20.0], [], 0, 0.0),
        ([20.0], [state(elapsed_s=20.0)], 1, None),
        ([20.0], [state(elapsed_s=19.0)], 0, 1.0),
        ([20.0], [RowState(spec("a"), 5.0, None)], 0, 15.0),
    ],
)
def test_without_expected_times_the_time_left_follows_from_ended_rows_and_estimates_of_running_ones(
    times_s, states, waiting, left_s
):
    remaining = RemainingTime({})
    for time_s in times_s:
        remaining.add_ended("a", time_s, ended())
    assert estimate_s(remaining, states, [spec("b")] * waiting, size=2) == left_s


def test_expected_times_are_scaled_by_the_speed_of_this_machine_once_rows_have_ended():
    remaining = RemainingTime({row: ExpectedTime(20.0, 2.0) for row in "abc"})
    assert estimate_s(remaining, [state(elapsed_s=5.0)], [spec("b"), spec("c")]) == 15.0 + 20.0 + 20.0
    remaining.add_ended("a", 36.0 + 10.0, ended(start_s=10.0))
    assert estimate_s(remaining, [], [spec("b"), spec("c")]) == 2 * (2.0 + 1.5 * 18.0)


def test_a_row_without_progress_has_at_least_its_expected_time_after_the_start_left():
    remaining = RemainingTime({"a": ExpectedTime(20.0, 2.0)})
    assert estimate_s(remaining, [RowState(spec("a"), 1.0, None)], []) == 19.0
    assert estimate_s(remaining, [RowState(spec("a"), 15.0, None)], []) == 18.0


def test_the_estimate_of_a_running_row_is_used_if_it_is_shorter_or_the_expected_time_is_exceeded():
    remaining = RemainingTime({"a": ExpectedTime(20.0, 2.0)})
    assert estimate_s(remaining, [state(left_s=3.0)], []) == 3.0
    assert estimate_s(remaining, [state(left_s=30.0)], []) == 10.0
    assert estimate_s(remaining, [state(left_s=30.0, elapsed_s=25.0)], []) == 30.0
    assert estimate_s(remaining, [state(elapsed_s=25.0)], []) is None
