"""Work of the host beside the operations: kernels that it chooses for new sizes, and work without an operation."""

import json

import pytest

from experiments.prediction.times import step
from experiments.prediction.times.phase import HOST_FACTORS, RecordedPhase, phase_time
from experiments.prediction.times.table import HostFactors, OperationTime, Table
from tests.experiments.prediction.times.test_step import H100, MACHINE, collective, copy, micro_steps, product
from tests.support.training.tiny_rows import spec


@pytest.fixture
def table():
    """Return a table whose host needs twice the time of the reference host for all work beside the operations."""
    made = Table(MACHINE, {product(64): OperationTime(1e-4, 1e-5)})
    made.host = HostFactors(other=2.0)
    return made


def convolution(tokens: int, backward: bool = False) -> str:
    given, weights = ({"type": "BFloat16", "sizes": sizes} for sizes in ([4, 32, tokens], [64, 32, 1]))
    options = [[1], [0], [1], False, [0], 1]
    if backward:
        gradient = {"type": "BFloat16", "sizes": [4, 64, tokens]}
        name, arguments = "aten::convolution_backward.default", [gradient, given, weights, [0], *options]
        return json.dumps([name, *arguments, [True, True, False]])
    return json.dumps(["aten::convolution.default", given, weights, None, *options])


def test_for_an_operation_of_new_sizes_the_host_chooses_a_kernel_and_for_gradients_of_a_convolution_two(table):
    keys = [product(512), copy({"sizes": [8]}), convolution(300), convolution(300, backward=True)]
    known = RecordedPhase("forward", 0, dict(zip(keys, (3, 2, 1, 1), strict=True)))
    choices = [phase_time(known, table, H100, {key: 1.0}).host_work.get("kernel choices", 0.0) for key in keys]
    assert choices == [2 * 1, 0, 2 * 1, 2 * 2]
    assert phase_time(known, table, H100).host_work.get("kernel choices", 0.0) == 0
    never, half, always = (phase_time(known, table, H100, {product(512): share}).host_s for share in (0.0, 0.5, 1.0))
    assert always - never == pytest.approx(2 * HOST_FACTORS["kernel choices"])
    assert half - never == pytest.approx(2 * HOST_FACTORS["kernel choices"] / 2)


def test_the_host_chooses_a_kernel_before_the_first_execution_only(table):
    known = RecordedPhase("forward", 0, {product(64): 1, product(512): 2}, {}, 0, (0, 1, 1), (False,) * 3)
    schedule = phase_time(known, table, H100, {product(512): 1.0}).schedule
    assert schedule
    assert [*schedule.host["kernel choices"]] == [0.0, 1.0, 0.0]


def test_the_schedule_has_the_work_of_a_repeated_forward_pass_where_it_is_repeated(table):
    known = RecordedPhase("backward", 0, {product(64): 3}, {product(64): 1}, 0, (0, 0, 0), (False, True, False))
    schedule = phase_time(known, table, H100).schedule
    assert schedule
    assert {kind: [*shares] for kind, shares in schedule.host.items()} == {
        "backward": [0.5, 0.0, 0.5],
        "forward": [0.0, 1.0, 0.0],
        "layers": [0.0, 1.0, 0.0],
    }


def test_texts_of_new_lengths_among_all_batches_of_a_row_take_host_time(table, monkeypatch):
    """Each step has a forward and a backward pass with one product of new sizes, if its texts have a new length."""
    monkeypatch.setattr(step, "tables", lambda: (table,))
    recorded, row = micro_steps([128, 256]), spec(batch_size=1)
    equal, different = (
        step.step_time(recorded, row, "h100_80gb", 8, lengths).host_s for lengths in ([128] * 8, [*range(128, 136)])
    )
    assert different - equal == pytest.approx((8 - 1) / 8 * 2 * 2 * HOST_FACTORS["kernel choices"])


def test_only_operations_with_a_kernel_need_a_measured_time():
    host_work = ["host::views", 16], ["host::checkpoint"], ["host::modules", 30], ["host::micro_step"], ["host::wait"]
    others = dict.fromkeys([*map(json.dumps, host_work), collective("allreduce")], 1)
    recorded = [one._replace(operations={**one.operations, **others}) for one in micro_steps([128, 256])]
    assert step.needed_operations(recorded, 1) == {product(64), product(128), product(256)}
    assert step.needed_operations(recorded[:2], 1) == set()


@pytest.mark.parametrize(
    ("counts", "work"),
    [
        ({'["host::views", 16]': 3, '["host::views", 2]': 1}, {"views": 50}),
        ({'["host::checkpoint"]': 24}, {"checkpoints": 24}),
        ({'["host::modules", 30]': 2}, {"modules": 60}),
        ({'["host::micro_step"]': 1}, {"micro-steps": 1}),
    ],
)
def test_work_without_an_operation_needs_the_host_only(table, counts, work):
    time = phase_time(RecordedPhase("forward", 0, counts), table, H100)
    assert (dict(time.host_work), time.gpu_s) == ({kind: 2 * units for kind, units in work.items()}, 0.0)
    assert time.host_s == pytest.approx(sum(2 * HOST_FACTORS[kind] * units for kind, units in work.items()))
