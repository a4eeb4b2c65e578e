"""Times of a phase whose operations are known in their order: where the GPU waits for the host, and where it lags."""

from random import Random

import pytest

from experiments.prediction.times.clocks import QUEUED_OPERATIONS, Clocks, gpu_busy_share
from experiments.prediction.times.phase import HOST_FACTORS, PhaseTime, interpolate_parts
from experiments.prediction.times.replay import list_tensor_length
from experiments.prediction.times.schedule import Queue, Schedule
from experiments.prediction.times.step import share_of_new, typical_steps

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


@pytest.mark.parametrize("limit", [1, 2, 3, 7, None])
def test_the_host_waits_while_the_queue_is_full(limit):
    """The times of host and GPU are those of a simulation that goes from one operation to the next.

    A third of the operations have no work for the GPU: they take no place in the queue.
    """
    random = Random(limit)
    host_s = [random.random() for _ in range(40)]
    gpu_s = [0.0 if number % 3 == 1 else random.random() for number in range(40)]
    clocks, host, gpu = Clocks(limit), 0.0, 0.0
    ends: list[float] = []
    for begin in range(0, 40, 8):
        part = (host_s[begin : begin + 8], gpu_s[begin : begin + 8])
        device = [("copies", one) for one in part[1]]
        schedule = Schedule.build(range(8), [{"forward": one} for one in part[0]], device)
        clocks.run(PhaseTime({"forward": sum(part[0])}, {"copies": sum(part[1])}, schedule=schedule), HOST_FACTORS)
        works_s = 0.0
        for started, executed in zip(*part, strict=True):
            works_s += started
            if executed:
                host = max(host, ends[-limit] if limit and len(ends) >= limit else 0.0) + works_s
                gpu, works_s = max(gpu, host) + executed, 0.0
                ends.append(gpu)
        host += works_s
        assert (clocks.host_s, clocks.gpu_s) == (pytest.approx(host), pytest.approx(gpu))


def test_the_host_is_at_most_as_many_operations_ahead_of_the_gpu_as_the_queue_has_places():
    schedule = Schedule.build([0] * 2000, [{"forward": 1e-6}], [("copies", 1.0)])
    clocks = Clocks()
    clocks.run(PhaseTime({"forward": 2e-3}, {"copies": 2000.0}, schedule=schedule), HOST_FACTORS)
    assert round(clocks.gpu_s) == 2000
    assert round(clocks.host_s) == 2000 - QUEUED_OPERATIONS


def test_after_a_part_with_unknown_order_the_queue_is_empty():
    clocks = Clocks(1)
    clocks.run(phase(GPU_LIMITED), HOST_FACTORS)
    clocks.run(PhaseTime({"forward": 1.0}, {"copies": 9.0}), HOST_FACTORS)
    clocks.run(phase(GPU_LIMITED), HOST_FACTORS)
    assert (clocks.host_s, clocks.gpu_s) == (3.0, 16.0)


def test_a_wait_lets_the_host_begin_after_the_gpu_and_the_links():
    clocks = Clocks()
    clocks.run(phase(GPU_LIMITED), HOST_FACTORS)
    clocks.wait()
    assert clocks.host_s == clocks.gpu_s == 4.0
    clocks.links_s = 9.0
    clocks.wait()
    assert clocks.host_s == 9.0


@pytest.mark.parametrize("order", [(0, 1, 0), (1, 0, 0)])
def test_work_of_one_execution_counts_where_it_happens(order):
    """The host works for 5 seconds before the second operation only; the GPU then waits for it."""
    schedule = Schedule.build(order, [{"forward": 1.0}] * 2, [("copies", 1.0)] * 2, {"layers": [0.0, 5.0, 0.0]})
    found = schedule.run({"forward": 3.0, "layers": 5.0}, {"copies": 3.0}, 0.0, 0.0, Queue(None))
    assert found == (8.0, 9.0)


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


def test_a_length_is_new_if_no_earlier_batch_had_it():
    assert share_of_new([5, 7, 5, 6, 6]) == 3 / 5
    assert share_of_new([5, 7, 5, 6, 6], first=2) == 1 / 3
    assert share_of_new([]) == 0.0


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
