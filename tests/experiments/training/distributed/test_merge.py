"""Merging the measurements of several ranks."""

import pytest

from experiments.results.schema import Failure, Measured, Memory, Progress, Speed
from experiments.training.distributed.merge import merge_ranks, root_failure, slowest_progress, slowest_speed
from tests.support.results.in_memory import CPU, SPEED


def rank(number, outcome="fits", kind=None, peak=1.0, step_s=0.5, losses=(), **more):
    failure = Failure(phase="backward", rank=number, kind=kind, message="m") if kind else None
    return Measured(
        rank=number,
        outcome=outcome,
        reason=f"reason of {number}",
        failure=failure,
        device=CPU,
        memory=Memory(peak_gib=peak),
        speed=None if failure else Speed(**SPEED | {"step_s": step_s}),
        losses=losses,
        **more,
    )


def test_a_row_has_the_highest_memory_the_lowest_speed_and_the_mean_loss_of_its_ranks():
    ranks = [
        rank(1, peak=3.0, step_s=0.5, losses=(2.0, 4.0, 6.0), max_tokens=9, gpu_s=2.0),
        rank(0, peak=2.0, step_s=0.7, losses=(1.0, 2.0), max_tokens=11, gpu_s=3.0),
    ]
    row = merge_ranks(ranks)
    assert (row.rank, row.outcome, row.reason) == (0, "fits", "reason of 1, of rank 1")
    assert (row.memory.peak_gib, row.speed.step_s, row.losses) == (3.0, 0.7, (1.5, 3.0))
    assert (row.max_tokens, row.gpu_s, row.device.count) == (11, 5.0, 2)


@pytest.mark.parametrize(
    ("ranks", "first"),
    [
        ([rank(0, "error", "RuntimeError"), rank(2, "oom", "OutOfMemoryError")], 2),
        ([rank(0, "error", "RuntimeError"), rank(1, "error", "signal 9")], 1),
        ([rank(0, "error", "signal 15"), rank(3, "error", "RuntimeError")], 0),
        ([rank(3, "error", "RuntimeError"), rank(0, "error", "signal 15")], 3),
        ([rank(1, "error", "signal 6"), rank(0, "error", "signal 11")], 0),
        ([rank(0, "error", "signal 9"), rank(1, "host_oom", "signal 9")], 1),
        ([rank(0), rank(1, "error", "ValueError")], 1),
        ([rank(0, "error", "RuntimeError"), rank(1, "error", "node lost")], 1),
    ],
)
def test_the_failure_of_a_row_is_the_most_severe_and_of_equally_severe_ones_the_earliest(ranks, first):
    assert root_failure(ranks).rank == first
    row = merge_ranks(ranks)
    assert (row.failure.rank, row.reason) == (first, f"rank {first}: reason of {first}")
    assert row.speed is None


def test_a_row_whose_ranks_all_fit_has_no_failure():
    assert root_failure([rank(0), rank(1)]) is None


def test_a_row_has_a_speed_only_if_all_its_ranks_have_one():
    speed = rank(0).speed
    assert slowest_speed([speed, None]) is None
    assert slowest_speed([]) is None


def test_the_progress_of_a_row_is_that_of_its_slowest_rank():
    progresses = [
        Progress(phase="forward", step=1, micro_steps=4, planned_micro_steps=9, memory=Memory(peak_gib=1.0)),
        Progress(
            phase="load", step=0, micro_steps=3, planned_micro_steps=9, allocated_gib=2.0, memory=Memory(peak_gib=2.5)
        ),
        Progress(phase="forward", step=1, micro_steps=5, planned_micro_steps=9),
    ]
    row = slowest_progress(progresses)
    assert (row.micro_steps, row.phase, row.memory.peak_gib, row.allocated_gib) == (3, "load", 2.5, 2.0)
