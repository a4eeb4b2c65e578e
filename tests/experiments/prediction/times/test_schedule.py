"""Times of a phase whose operations are known in their order: where the GPU waits for the host, and where it lags."""

import pytest

from experiments.prediction.times.clocks import Clocks, gpu_busy_share
from experiments.prediction.times.phase import HOST_FACTORS, PhaseTime, interpolate_parts
from experiments.prediction.times.replay import list_tensor_length
from experiments.prediction.times.schedule import Schedule
from experiments.prediction.times.step import typical_steps

HOST_LIMITED, GPU_LIMITED = 0, 1
HOST_S, GPU_S = (3.0, 1.0), (1.0, 3.0)
"""Seconds of the two kinds of operations. Two of each need as long of the host as of the GPU."""


def phase(*order: int) -> PhaseTime:
    schedule = Schedule.build(order, [{"forward": host_s} for host_s in HOST_S], [("copies", gpu_s) for gpu_s in GPU_S])
    host_s, gpu_s = sum(HOST_S[one] for one in order), sum(GPU_S[one] for one in order)
    return PhaseTime({"forward": host_s}, {"copies": gpu_s}, schedule=schedule)


def gpu_end_s(part: PhaseTime, gpu_s: float = 0.0) -> float:
    clocks = Clocks()
    clocks.gpu_s = gpu_s
    clocks.run(part, HOST_FACTORS)
    return clocks.gpu_s


def test_a_lag_of_the_gpu_is_used_up_while_the_host_is_slow():
    assert gpu_end_s(phase(GPU_LIMITED, HOST_LIMITED)) == 5.0  # 1 + 3 until 4, which the host needs too; then 1


def test_time_in_which_the_gpu_waits_for_the_host_is_lost():
    assert gpu_end_s(phase(HOST_LIMITED, GPU_LIMITED)) == 7.0  # the host needs 3, then the GPU 1 and 3


def test_earlier_work_of_the_gpu_hides_the_slow_host():
    assert gpu_end_s(phase(HOST_LIMITED, GPU_LIMITED), gpu_s=10.0) == 14.0


def test_scaled_times_scale_each_operation():
    assert gpu_end_s(phase(HOST_LIMITED, GPU_LIMITED).scaled(2.0, 1.0)) == 6.0 + 2.0 + 3.0
    assert gpu_end_s(phase(HOST_LIMITED, GPU_LIMITED).scaled(1.0, 2.0)) == 3.0 + 8.0


@pytest.mark.parametrize("order", [(HOST_LIMITED, GPU_LIMITED) * 3, (GPU_LIMITED, HOST_LIMITED) * 3])
def test_a_phase_takes_at_least_as_long_as_without_the_order(order):
    part = phase(*order)
    assert gpu_end_s(part) >= gpu_end_s(part._replace(schedule=None))


def test_typical_steps_have_evenly_spaced_lengths_of_which_long_and_short_ones_alternate():
    (first, second) = typical_steps([*range(800)], 4)
    assert sorted([*first, *second]) == [50, 150, 250, 350, 450, 550, 650, 750]
    assert all(350 <= sum(step) / 4 <= 450 for step in (first, second))


def test_a_step_has_a_length_for_each_micro_step_and_all_steps_together_have_at_least_eight():
    assert [len(step) for step in typical_steps([1, 2, 3], 16)] == [16]
    assert [len(step) for step in typical_steps([1, 2, 3], 3)] == [3, 3, 3]
    assert typical_steps([7], 1) == [[7]] * 8


def test_without_texts_the_traced_batches_are_typical():
    assert typical_steps([], 4) == [None]


@pytest.mark.parametrize(
    ("elements", "tensors", "length"), [(6738415616, 227, 29684672), (160, 160, 1), (1000, 20, 50)]
)
def test_long_tensors_of_a_list_have_a_length_that_vectorized_kernels_accept(elements, tensors, length):
    assert list_tensor_length(elements, tensors) == length


def test_a_step_without_any_work_keeps_no_gpu_busy():
    assert gpu_busy_share([PhaseTime({}, {})]) == 0.0


def test_a_time_that_is_extrapolated_to_short_texts_is_not_negative():
    short, long = PhaseTime({}, {"copies": 1.0}), PhaseTime({}, {"copies": 4.0})
    (shorter,) = interpolate_parts([short], 20, [long], 30, 10)
    assert shorter.device_s == {"copies": 0.0}
