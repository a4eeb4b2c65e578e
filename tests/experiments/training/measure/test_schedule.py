import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.training.measure.schedule import Timing, build_schedule, full_micro_steps, relative_spread
from tests.support.training.tiny_rows import spec

counts = st.integers(1, 40)
step_limits = st.integers(-1, 30)


def schedule_for(length, accumulate, epochs, batches, max_steps=-1):
    row = spec(length=length, accumulate=accumulate, max_epochs=epochs, max_steps=max_steps, train_samples=None)
    return build_schedule(row, batches)


@given(accumulate=counts, epochs=counts, batches=counts, max_steps=step_limits)
def test_a_run_with_length_verdict_has_whole_steps_and_is_not_longer_than_the_full_training(
    accumulate, epochs, batches, max_steps
):
    schedule = schedule_for("verdict", accumulate, epochs, batches, max_steps)
    assert schedule.minimum <= schedule.maximum <= schedule.total
    assert schedule.minimum == schedule.total or schedule.minimum % accumulate == 0
    assert schedule.maximum == min(2 * schedule.minimum, schedule.total)


@given(accumulate=counts, batches=counts)
def test_with_length_verdict_at_least_four_micro_steps_are_measured_after_two_optimizer_steps(accumulate, batches):
    schedule = schedule_for("verdict", accumulate, 1, batches)
    if schedule.minimum < schedule.total:
        assert schedule.minimum >= 2 * accumulate + 4
        assert schedule.minimum - accumulate < 2 * accumulate + 4


@given(accumulate=counts, epochs=counts, batches=counts)
def test_a_shortened_run_has_the_longest_batch_in_its_second_step(accumulate, epochs, batches):
    schedule = schedule_for("verdict", accumulate, epochs, batches)
    if schedule.minimum == schedule.total:
        assert schedule.longest_batch_index is None
    else:
        assert schedule.longest_batch_index == 2 * accumulate - 1


@given(accumulate=counts, epochs=counts, batches=counts, max_steps=step_limits)
def test_a_run_with_length_peak_ends_with_the_second_step_which_has_the_longest_batch(
    accumulate, epochs, batches, max_steps
):
    schedule = schedule_for("peak", accumulate, epochs, batches, max_steps)
    assert schedule.minimum == schedule.maximum == min(2 * accumulate, schedule.total)
    assert schedule.longest_batch_index == (None if schedule.minimum == schedule.total else schedule.minimum - 1)
    assert [schedule.may_end([1.0, 9.0] * done) for done in (0, schedule.minimum)] == [schedule.minimum == 0, True]


@given(accumulate=counts, times=st.lists(st.floats(0.01, 10), max_size=60))
def test_a_run_with_length_verdict_ends_after_the_whole_step_in_which_times_are_steady(accumulate, times):
    schedule = schedule_for("verdict", accumulate, 10, 40)
    ends = schedule.may_end(times)
    if len(times) >= schedule.maximum:
        assert ends
    elif len(times) < schedule.minimum or len(times) % accumulate:
        assert not ends
    else:
        assert ends == (Timing.from_times(times, accumulate).spread <= 0.05)


def test_a_run_with_length_verdict_ends_after_its_minimum_of_steps_only_if_their_times_are_steady():
    schedule = schedule_for("verdict", 1, 1, 40)
    assert (schedule.minimum, schedule.maximum) == (6, 12)
    assert schedule.may_end([9.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    assert not schedule.may_end([1.0, 1.0, 1.0, 2.0, 3.0, 4.0])
    assert not schedule.may_end([1.0] * 5)


@pytest.mark.parametrize(
    ("times", "ends"),
    [
        ([0.5] * 7, False),
        ([9.0, 9.0] + [0.5] * 5, False),
        ([9.0, 9.0] + [0.5] * 6, True),
        ([0.1, 0.3] * 6, False),
        ([0.1, 0.3] * 8, True),
        ([0.01] * 39, False),
        ([0.01] * 40, True),
    ],
)
def test_a_row_that_needs_a_time_of_steady_steps_continues_until_it_is_measured_or_the_training_ends(times, ends):
    row = spec(length="verdict", max_epochs=1, max_steps=-1, train_samples=None, steady_s=2.6)
    assert build_schedule(row, 40).may_end(times) == ends


def test_the_required_time_of_steady_steps_counts_only_at_length_verdict():
    row = spec(length="peak", max_epochs=1, max_steps=-1, train_samples=None)
    assert build_schedule(row.model_copy(update={"steady_s": 3.0}), 40).last_micro_step == 2


def test_a_run_with_length_verdict_does_not_end_within_an_optimizer_step():
    schedule = schedule_for("verdict", 2, 1, 40)
    assert (schedule.minimum, schedule.maximum) == (8, 16)
    assert [schedule.may_end([1.0] * done) for done in range(7, 11)] == [False, True, False, True]


@given(accumulate=counts, epochs=counts, batches=counts, max_steps=step_limits, done=st.integers(0, 2000))
def test_a_full_length_run_has_all_steps(accumulate, epochs, batches, max_steps, done):
    schedule = schedule_for("as-taught", accumulate, epochs, batches, max_steps)
    assert schedule.minimum == schedule.maximum == schedule.total
    assert schedule.may_end([1.0] * done) == (done >= schedule.total)
    assert schedule.longest_batch_index is None


@pytest.mark.parametrize(
    ("accumulate", "max_steps", "micro_steps"), [(1, -1, 20), (4, -1, 20), (4, 2, 8), (4, 9, 20), (1, 7, 7)]
)
def test_the_number_of_micro_steps_of_a_full_training_depends_on_epochs_accumulation_and_max_steps(
    accumulate, max_steps, micro_steps
):
    settings = spec(accumulate=accumulate, max_steps=max_steps, max_epochs=2, train_samples=None).settings
    assert full_micro_steps(settings, batches_per_epoch=10) == micro_steps


def test_the_first_two_steps_are_not_timed():
    timing = Timing.from_times([100, 200, 300, 400, 1.0, 3.0, 2.0, 5.0], accumulate=2)
    assert (timing.without_optimizer_step_s, timing.with_optimizer_step_s, timing.micro_step_count) == (
        [1.0, 2.0],
        [3.0, 5.0],
        4,
    )


@given(accumulate=st.integers(1, 8), count=st.integers(1, 60))
def test_at_least_one_micro_step_is_timed_after_a_warm_up_of_at_most_two_optimizer_steps(accumulate, count):
    measured = Timing.from_times([1.0] * count, accumulate).micro_step_count
    assert measured >= 1
    assert measured == count - accumulate * min(2, (count - 1) // accumulate)


def test_no_micro_step_is_timed_before_the_first_one_has_ended():
    assert Timing.from_times([], 2).micro_step_count == 0
    assert Timing.from_times([], 2).step_s(2) == 0


@pytest.mark.parametrize(
    ("stepping", "plain", "accumulate", "step_s"),
    [
        ([3.0, 3.0, 9.0], [1.0, 1.0, 2.0], 4, 6.0),
        ([3.0, 5.0, 4.0], [], 1, 4.0),
        ([], [1.0, 1.5, 2.0], 4, 6.0),
    ],
)
def test_the_time_of_a_step_is_the_sum_over_its_micro_steps(stepping, plain, accumulate, step_s):
    assert Timing(stepping, plain).step_s(accumulate) == step_s


@pytest.mark.parametrize(("times", "value"), [([], 0), ([7.0], 0), ([2.0] * 5, 0), ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 3)])
def test_the_spread_of_times_is_the_interquartile_range_divided_by_the_median(times, value):
    assert relative_spread(times) == pytest.approx(value)


def test_the_spread_of_times_is_the_larger_of_the_spreads_with_and_without_optimizer_step():
    assert Timing([1.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]).spread == pytest.approx(2 / 3)
    assert Timing([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0]).spread == pytest.approx(2 / 3)
