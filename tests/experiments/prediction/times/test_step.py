"""The time of a step is computed from its phases, and their times from a table of operations."""

import json
from collections.abc import Sequence
from random import Random
from statistics import NormalDist, fmean
from typing import Any, get_args

import pytest

from experiments.prediction.times import phase as phase_module
from experiments.prediction.times import step
from experiments.prediction.times.clocks import gpu_busy_share, total_seconds
from experiments.prediction.times.limits import KERNEL_START_S, attainable_s
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import (
    ADAM_PARAMETERS_PER_S,
    HOST_FACTORS,
    LINK_SHARE,
    PCIE_GB_S,
    RANK_SPREAD,
    PhaseTime,
    RecordedPhase,
    communication_s,
    interpolate_parts,
    phase_time,
    slowest_host,
)
from experiments.prediction.times.record import ends_part
from experiments.prediction.times.step import parts_of_step, program_step_time
from experiments.prediction.times.table import Machine, OperationTime, Table
from experiments.results.schema import Phase
from experiments.suites.cards import card_named

H100, A100 = card_named("h100_80gb"), card_named("a100_80gb")
MACHINE = Machine(card="h100_80gb", gpu="NVIDIA H100", host="a host", torch="2.11", command="a test", date="2026-11-28")


def product(rows: int, columns: int = 4096, depth: int = 4096) -> str:
    sizes = ([rows, depth], [depth, columns], [rows, columns])
    return json.dumps(["aten::mm.out", *({"type": "BFloat16", "sizes": size} for size in sizes)], separators=(",", ":"))


def copy(source: dict[str, Any]) -> str:
    tensors = ({"type": "Float", "sizes": source["sizes"]}, {"type": "Float", **source})
    return json.dumps(["aten::copy_.default", *tensors, False], separators=(",", ":"))


def phase(host_s: float, device_s: float, **times: Any) -> PhaseTime:
    return PhaseTime({"forward": host_s / HOST_FACTORS["forward"]}, {"matrix products": device_s}, **times)


def backward(host_s: float, device_s: float, **times: Any) -> PhaseTime:
    return phase(host_s, device_s, phase="backward", **times)


def optimizer(host_s: float, device_s: float) -> PhaseTime:
    return phase(host_s, device_s, phase="optimizer step")


@pytest.mark.parametrize(
    ("phases", "expected_s"),
    [
        ([phase(1, 3), phase(1, 4)], 7),  # the GPU limits
        ([phase(3, 1), phase(4, 1)], 7),  # the host limits
        ([phase(1, 4), phase(4, 1)], 5),  # the host goes on while the GPU works off the first phase
        ([phase(4, 1), phase(1, 4)], 5),
        ([phase(1, 4), phase(4, 1, cpu_optimizer_s=3)], 8),  # the GPU waits for the optimizer on the CPU
        ([phase(1, 2, link_s=5.0, gathers=True)], 5),  # the links limit
        ([phase(3, 0), phase(1, 1)], 4),  # the first part has no work for the GPU
    ],
)
def test_host_and_gpu_work_at_the_same_time_except_during_an_optimizer_on_the_cpu(phases, expected_s):
    assert total_seconds(phases) == expected_s


@pytest.mark.parametrize(
    ("phases", "expected_s"),
    [
        ([phase(3, 1, host_waits=True), phase(1, 3)], 4),  # the GPU works while the host starts the next step
        ([phase(3, 1), phase(1, 3, host_waits=True)], 6),  # the GPU has no work while the host starts the next step
        ([phase(1, 3, host_waits=True), phase(1, 3)], 6),  # the GPU limits
        ([phase(1, 1, link_s=4.0, gathers=True), phase(1, 2), optimizer(1, 1)], 7),  # the GPU waits for the gather
        ([phase(1, 3), phase(1, 1, link_s=2.0, gathers=True), phase(1, 4)], 8),  # a gather in advance
        # a reduction at the same time, and one that the optimizer waits for
        ([backward(1, 4), backward(1, 4, link_s=3.0), backward(1, 4), optimizer(1, 1)], 13),
        ([backward(1, 4), backward(1, 4), backward(1, 4, link_s=3.0), optimizer(1, 1)], 16),
    ],
)
def test_values_delay_the_host_and_gathers_delay_the_gpu_and_reductions_delay_the_optimizer(phases, expected_s):
    assert total_seconds(phases) == expected_s


@pytest.mark.parametrize(
    ("phases", "share"),
    [
        ([phase(3, 1), phase(4, 1)], 2 / 7),  # the host limits
        ([phase(1, 1, link_s=4.0, gathers=True), phase(1, 2), optimizer(1, 1)], 1),  # a gather runs kernels
        ([backward(1, 4), backward(1, 4, link_s=3.0), backward(1, 4), optimizer(1, 1)], 1),  # at the same time
        ([phase(1, 3), phase(1, 1), optimizer(1, 1)._replace(cpu_optimizer_s=5.0)], 5 / 10),
    ],
)
def test_the_gpu_is_busy_while_it_computes_or_exchanges_data_with_other_gpus(phases, share):
    assert gpu_busy_share(phases) == pytest.approx(share)


def test_a_measured_operation_takes_its_measured_time_scaled_to_the_speed_of_the_card():
    table = Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)})
    assert table.times(product(4096), H100) == OperationTime(4e-4, 1e-5)
    flop = 2 * 4096**3
    on_a100_s, on_h100_s = (KERNEL_START_S + flop / (card.peak_tflops["bf16"] * 1e12) for card in (A100, H100))
    assert table.times(product(4096), A100).device_s == pytest.approx(4e-4 * on_a100_s / on_h100_s)


def test_an_operation_that_was_not_measured_is_as_efficient_as_the_most_similar_one():
    large, small = product(8192), product(64)
    table = Table(
        MACHINE,
        {
            large: OperationTime(2 * attainable_s(parse(large), H100), 1e-5),
            small: OperationTime(9 * attainable_s(parse(small), H100), 1e-5),
        },
    )
    asked = product(4096)
    assert table.times(asked, H100).device_s == pytest.approx(2 * attainable_s(parse(asked), H100))


def test_a_foreach_operation_on_few_tensors_is_as_efficient_as_an_element_wise_one():
    one, many = ({"type": "Float", "sizes": [4096, 4096]}, {"type": "Float", "tensors": 300, "elements": 2**24})
    names = ("aten::_foreach_mul_.Scalar", "aten::mul_.Tensor")
    listed, element_wise = (json.dumps([name, tensor, 2]) for name, tensor in zip(names, (many, one), strict=True))
    table = Table(
        MACHINE,
        {
            listed: OperationTime(9 * attainable_s(parse(listed), H100), 1e-4),
            element_wise: OperationTime(2 * attainable_s(parse(element_wise), H100), 1e-5),
        },
    )
    few, longer = (json.dumps([names[0], tensor, 2]) for tensor in ([one], many | {"tensors": 299}))
    times = [table.times(key, H100).device_s / attainable_s(parse(key), H100) for key in (few, longer)]
    assert times == pytest.approx([2, 9])


def test_the_most_similar_matrix_product_has_the_most_similar_sizes_not_the_same_arithmetic():
    wide, deep = product(2048, columns=2048, depth=8192), product(2048, columns=8192, depth=2048)
    slowdowns = {wide: 2, deep: 3}
    table = Table(
        MACHINE, {key: OperationTime(each * attainable_s(parse(key), H100), 1e-5) for key, each in slowdowns.items()}
    )
    asked = product(2048, columns=4096, depth=2048)
    assert table.times(asked, H100).device_s == pytest.approx(3 * attainable_s(parse(asked), H100))


def test_the_most_similar_memory_bound_operation_has_the_same_layout_rather_than_the_same_size():
    contiguous, transposed = {"sizes": [4096, 64]}, {"sizes": [1024, 64], "strides": [1, 1024]}
    keys = [copy(contiguous), copy(transposed)]
    slowdowns = {keys[0]: 1, keys[1]: 4}
    table = Table(
        MACHINE, {key: OperationTime(each * attainable_s(parse(key), H100), 1e-5) for key, each in slowdowns.items()}
    )
    asked = copy({"sizes": [4096, 64], "strides": [1, 4096]})
    assert table.times(asked, H100).device_s == pytest.approx(4 * attainable_s(parse(asked), H100))


def test_the_time_of_an_operation_for_which_the_gpu_waited_is_not_used_for_other_operations():
    slow, usual = product(4096), product(1024)
    table = Table(MACHINE, {slow: OperationTime(2e-4, 3e-4), usual: OperationTime(2e-5, 1e-5)})
    efficiency = 2e-5 / attainable_s(parse(usual), H100)
    assert table.times(product(5000), H100).device_s == pytest.approx(
        efficiency * attainable_s(parse(product(5000)), H100)
    )
    assert table.times(slow, H100).device_s == 2e-4


def test_the_host_time_of_an_operation_is_at_most_the_typical_time_of_its_family():
    times = {product(rows): OperationTime(1e-4, host_s) for rows, host_s in ((64, 1e-5), (128, 1e-5), (256, 1.0))}
    assert Table(MACHINE, times).times(product(256), H100).host_s == 1e-5


def test_the_time_of_a_phase_is_the_sum_of_the_times_of_its_operations(monkeypatch):
    table = Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)})
    key = product(4096)
    forward = phase_time(RecordedPhase("forward", 0, {key: 10}), table, H100)
    assert forward.device_s == {"matrix products": pytest.approx(4e-3)}
    assert forward.host_s == pytest.approx(HOST_FACTORS["forward"] * 1e-4 + 10 * HOST_FACTORS["layers"])
    adam = json.dumps(["host::adam", {"type": "Float", "sizes": [10**9], "host": 1}])
    offload = phase_time(RecordedPhase("optimizer step", 0, {adam: 2}), table, H100)
    assert (offload.host_s, offload.cpu_optimizer_s) == (0.0, pytest.approx(2e9 / ADAM_PARAMETERS_PER_S))


def test_recomputed_operations_take_as_much_host_time_as_in_the_forward_pass():
    table, key = Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)}), product(4096)
    backward = phase_time(RecordedPhase("backward", 0, {key: 10}, {key: 4}), table, H100)
    expected_s = HOST_FACTORS["forward"] * 4e-5 + HOST_FACTORS["backward"] * 6e-5 + 4 * HOST_FACTORS["layers"]
    assert backward.host_s == pytest.approx(expected_s)
    assert backward.device_s == {"matrix products": pytest.approx(4e-3)}


def micro_steps(lengths: Sequence[int]) -> list[RecordedPhase]:
    """Return the phases of micro-steps with products of texts of these lengths, each with a step of the optimizer."""
    return [
        RecordedPhase(name, rows, {} if name == "optimizer step" else {product(rows): 2, product(64): 1})
        for rows in lengths
        for name in get_args(Phase)
        if name in ("forward", "backward", "optimizer step")
    ]


def test_sizes_vary_that_not_all_micro_steps_have_and_a_phase_has_each_of_them_once():
    varying = step.varying_operations(micro_steps([100, 200, 200, 300]))
    assert varying == {product(rows) for rows in (100, 200, 300)}
    parts = (RecordedPhase("forward", 0, {product(100): 1}), RecordedPhase("forward", 0, {product(100): 4}))
    assert [*step._first_occurrences(parts, varying)] == [{product(100)}, set()]


@pytest.mark.parametrize(
    ("lengths", "new_lengths", "choices"), [([128, 128], 1.0, 0.0), ([128, 256], 1.0, 2.0), ([128, 256], 0.25, 0.5)]
)
def test_the_host_chooses_kernels_for_texts_of_new_lengths_in_the_forward_and_the_backward_pass(
    lengths, new_lengths, choices
):
    times = step.phases_of_step(micro_steps(lengths), 1, None, Table(MACHINE, {}), H100, new_lengths)
    assert sum(time.host_work.get("kernel choices", 0.0) for time in times) == choices


def collective(name: str, size: int = 10**9) -> str:
    return json.dumps([f"communication::{name}", {"type": "Byte", "sizes": [size]}, 4])


def test_an_all_reduce_sends_the_data_twice_over_the_links_of_the_card():
    reduced_s, gathered_s = (communication_s(parse(collective(name)), A100) for name in ("allreduce", "allgather"))
    assert reduced_s == 2 * gathered_s == pytest.approx(1.5 / LINK_SHARE / PCIE_GB_S)
    assert communication_s(parse(collective("allgather")), H100) == pytest.approx(0.75 / LINK_SHARE / H100.link_gb_s)


def test_hooks_of_sharded_parameters_take_host_time_and_only_gathers_keep_the_gpu_waiting():
    table = Table(MACHINE, {})
    found = {
        name: phase_time(RecordedPhase("backward", 0, {collective(name): 2}), table, H100)
        for name in ("allgather", "reduce_scatter_single", "allreduce")
    }
    assert [time.host_s for time in found.values()] == [2 * HOST_FACTORS["shards"], 2 * HOST_FACTORS["shards"], 0.0]
    assert [time.gathers for time in found.values()] == [True, False, False]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_wait_for_the_slowest_host(ranks, monkeypatch):
    """The expected maximum of random times is that of a simulation, and only the host of several ranks is slower."""
    monkeypatch.setattr(phase_module, "RANK_SPREAD", 0.1)
    random = Random(0)
    simulated = fmean(max(random.gauss(1, 0.1) for _ in range(ranks)) for _ in range(20_000))
    (slow,) = slowest_host([phase(2, 3)._replace(cpu_optimizer_s=1.0)], ranks)
    assert slow.host_s == pytest.approx(2 * simulated, rel=0.005)
    assert (slow.gpu_s, slow.cpu_optimizer_s) == (3, 1.0)


def test_the_ranks_of_a_step_are_those_of_its_largest_collective_operation(monkeypatch):
    recorded = [
        RecordedPhase(name, 0, {collective("allreduce"): 1, product(64): 1})
        for name in ("forward", "backward", "optimizer step")
    ]
    alone = [RecordedPhase(one.phase, 0, {product(64): 1}) for one in recorded]
    assert (step.ranks_of(recorded), step.ranks_of(alone)) == (4, 1)
    several, single = (program_step_time(one, "h100_80gb", 4).host_s for one in (recorded, alone))
    assert several == pytest.approx(single * (1 + RANK_SPREAD * NormalDist().inv_cdf(3.625 / 4.25)))
    parts = [step.phases_of_step(one, 1, None, Table(MACHINE, {}), H100) for one in (recorded, alone)]
    hosts = [sum(part.host_s for part in one) for one in parts]
    assert hosts[0] / hosts[1] == pytest.approx(several / single)


def test_a_phase_is_split_at_each_wait_and_each_collective_operation():
    to_host = copy({"sizes": [8]}).replace('"sizes":[8]}', '"sizes":[8],"host":1}', 1)
    mask = json.dumps(["aten::index.Tensor_out", {"type": "Float", "sizes": [8]}, [{"type": "Bool", "sizes": [8]}]])
    read = json.dumps(["aten::_local_scalar_dense.default", {"type": "Float", "sizes": []}])
    to_gpu = copy({"sizes": [8], "host": 1})
    waiting = [to_host, to_gpu, mask, read, json.dumps(["host::wait"]), collective("allreduce")]
    asynchronous = [copied.replace("false", "true") for copied in (to_host, to_gpu)]
    places = [*asynchronous, mask.replace("Bool", "Long"), copy({"sizes": [8]}), product(64)]
    assert [*map(ends_part, waiting)] == [True] * 6
    assert [*map(ends_part, places)] == [False] * 5
    assert phase_time(RecordedPhase("forward", 0, {read: 1}), Table(MACHINE, {}), H100).host_waits


def test_each_step_includes_a_last_micro_step_in_which_gradients_are_reduced():
    passes: tuple[Phase, ...] = ("forward", "backward")
    recorded = [RecordedPhase(name, number, {}) for number in range(8) for name in passes]
    for place in (8, 17):  # two steps of four micro-steps
        recorded.insert(place, RecordedPhase("optimizer step", place, {}))
    found = [(own[0].tokens, other[0].tokens) for own, other in parts_of_step(recorded, 4)]
    assert found == [(4, 7)] * 2 + [(5, 7)] * 4 + [(7, 5)] * 2 + [(17, 17)]


def test_the_gpu_time_grows_with_the_tokens_of_the_batch():
    short, long = phase(1, 2), phase(1, 6)
    assert at_length(short, 100, long, 200, 150).device_s == {"matrix products": 4}
    assert at_length(short, 100, short, 100, 50).device_s == {"matrix products": 1}
    assert at_length(short, 100, long, 104, 50).device_s == {"matrix products": 1}  # too similar to extrapolate
    assert at_length(short, 100, long, 200, 150).host_s == 1


def test_all_parts_of_a_phase_grow_by_one_factor_even_if_the_other_batch_has_other_parts():
    short, long = [phase(1, 1), phase(1, 3, link_s=2.0)], [phase(1, 8)]
    found = interpolate_parts(short, 100, long, 200, 150)
    assert [part.gpu_s for part in found] == [1.5, 4.5]
    assert [part.link_s for part in found] == [0.0, 2.0]


def at_length(own: PhaseTime, own_tokens: int, other: PhaseTime, other_tokens: int, tokens: int) -> PhaseTime:
    (found,) = interpolate_parts([own], own_tokens, [other], other_tokens, tokens)
    return found


def test_the_gpu_is_busy_during_kernels_and_link_transfers_but_not_during_transfers_from_the_host():
    copies = PhaseTime({"forward": 1.0}, {"matrix products": 1.0, "host transfers": 5.0}, link_s=2.0)
    assert (copies.gpu_s, copies.kernels_s) == (6.0, 1.0)
    assert gpu_busy_share([copies]) == pytest.approx(3 / total_seconds([copies]))
    assert copies.scaled(2.0, 0.5) == PhaseTime({"forward": 2.0}, {"matrix products": 0.5, "host transfers": 2.5}, 1.0)


def test_every_time_of_the_stored_tables_is_positive_and_its_machine_is_named():
    for table in step.tables():
        assert table.machine.card
        assert table.machine.torch
        assert all(times.device_s > 0 and times.host_s > 0 for times in table.measured.values())


def test_the_time_of_a_step_includes_an_optimizer_on_the_cpu(monkeypatch):
    table = Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)})
    monkeypatch.setattr(step, "tables", lambda: (table,))
    adam = json.dumps(["host::adam", {"type": "Float", "sizes": [10**9], "host": 1}])
    recorded = [RecordedPhase("forward", 0, {product(4096): 10}), RecordedPhase("optimizer step", 0, {adam: 2})]
    time, alone = (program_step_time(phases, "h100_80gb", 1) for phases in (recorded, recorded[:1]))
    assert time.cpu_optimizer_s == pytest.approx(2e9 / ADAM_PARAMETERS_PER_S)
    assert time.step_s == pytest.approx(alone.step_s + time.cpu_optimizer_s)
    assert (alone.error_share, time.error_share) == (
        step.SAME_CHIP_ERROR,
        pytest.approx(step.SAME_CHIP_ERROR + step.SHARED_ERROR),
    )
    assert (alone.unmeasured_share, program_step_time([], "h100_80gb", 1)) == (0.0, None)


def test_the_unmeasured_share_is_the_share_of_gpu_time_in_operations_that_were_not_measured(monkeypatch):
    table = Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)})
    monkeypatch.setattr(step, "tables", lambda: (table,))
    recorded = [RecordedPhase("forward", 0, {product(4096): 1, product(8192): 1})]
    shorter_s, longer_s = (attainable_s(parse(product(rows)), H100) for rows in (4096, 8192))
    share = longer_s / (shorter_s + longer_s)
    assert program_step_time(recorded, "h100_80gb", 1).unmeasured_share == pytest.approx(share)


def test_a_card_that_lacks_the_data_type_of_the_matrix_products_has_no_predicted_time(monkeypatch):
    monkeypatch.setattr(step, "tables", lambda: (Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)}),))
    assert program_step_time([RecordedPhase("forward", 0, {product(4096): 1})], "v100_32gb", 1) is None


def test_the_unmeasured_share_of_an_extrapolated_time_is_at_most_one():
    short = PhaseTime({"forward": 1.0}, {"matrix products": 3.0}, unmeasured_s=2.0)
    long = PhaseTime({"forward": 1.0}, {"matrix products": 5.0}, unmeasured_s=5.0)
    longer = at_length(short, 20, long, 30, 40)
    assert (longer.device_s["matrix products"], longer.unmeasured_s) == (7.0, 8.0)
    table = Table(MACHINE, {product(4096): OperationTime(4e-4, 1e-5)})
    assert step._build_time([[longer]], table, "h100_80gb", 0.0).unmeasured_share == 1.0
