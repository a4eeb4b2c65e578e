from typing import Any

import pytest
import torch
from bitsandbytes.nn import Params4bit
from bitsandbytes.optim import Adam8bit
from torch import nn
from torch.profiler import ProfilerActivity, profile

from experiments.training.measure.meters import (
    CudaMeter,
    StorageMeter,
    optimizer_tensors,
    parameter_tensors,
    storage_bytes,
)


def test_a_storage_is_counted_once_however_many_views_it_has():
    with StorageMeter() as meter:
        base = torch.zeros(1000)
        views = [base[:10], base.view(10, 100), base.detach(), base.t()]
        base.add_(1)
        assert meter.allocated() == 4000
        meter.track("params", [base, *views, nn.Parameter(base)])
        assert meter.allocated() == 4000


def test_a_storage_counts_as_freed_with_its_last_reference():
    with StorageMeter() as meter:
        base = torch.zeros(1000)
        view = base[:10]
        del base
        assert meter.allocated() == 4000
        del view
        assert meter.allocated() == 0


def test_the_peak_is_the_highest_memory_since_the_last_reset():
    with StorageMeter() as meter:
        kept = torch.zeros(100)
        torch.zeros(1000)
        assert (meter.allocated(), meter.peak()) == (400, 4400)
        meter.begin("forward")
        assert meter.peak() == 400
        torch.zeros(10)
        assert meter.peak() == 440
    assert kept.numel() == 100
    assert meter.peak_reserved() is None


def test_tensors_created_before_the_meter_are_counted_if_they_are_tracked():
    before = torch.zeros(1000)
    meter = StorageMeter()
    meter.track("batch", [before, before[1:]])
    assert meter.allocated() == meter.peak() == 4000
    del before
    assert meter.allocated() == 0


def test_tensors_without_memory_are_not_counted():
    with StorageMeter(capacity_bytes=100) as meter:
        assert torch.zeros(1000, device="meta").numel() == 1000
        assert meter.peak() == 0


def test_an_allocation_beyond_the_capacity_is_out_of_memory_and_is_not_counted():
    with StorageMeter(capacity_bytes=2 * 2**20) as meter:
        kept = torch.zeros(2**18)
        with pytest.raises(
            torch.OutOfMemoryError, match=r"Tried to allocate 1\.50 MiB\. 2\.00 MiB in total, 1\.00 MiB"
        ):
            torch.zeros(3 * 2**17)
        assert meter.allocated() == meter.peak() == kept.nbytes
        assert torch.zeros(2**18).numel() == 2**18


def perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    return model, torch.optim.AdamW(model.parameters()), torch.randn(32, 64)


def train_step(model, optimizer, batch):
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()


def test_the_memory_of_a_training_step_agrees_with_torch_s_profiler():
    torch.set_num_threads(1)
    model, optimizer, batch = perceptron()
    with StorageMeter() as meter:
        meter.track("params", [*model.parameters(), batch])
        before = meter.allocated()
        train_step(model, optimizer, batch)
        kept, peak = meter.allocated() - before, meter.peak() - before
    model, optimizer, batch = perceptron()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train_step(model, optimizer, batch)
    profiled_bytes = profiled_peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        profiled_bytes += event.nbytes()
        profiled_peak = max(profiled_peak, profiled_bytes)
    assert kept == profiled_bytes > 0
    assert peak == pytest.approx(profiled_peak, rel=0.01)


def test_a_storage_that_tensors_share_is_counted_once_and_completely():
    base = torch.zeros(1000)
    assert storage_bytes([]) == 0
    assert storage_bytes([base, base[:10], nn.Parameter(base)]) == 4000
    assert storage_bytes([base[:10]]) == 4000
    assert storage_bytes([base, torch.zeros(10)]) == 4040


def optimizer_after_step(kind, weight, **options):
    optimizer = kind([weight], lr=0.1, **options)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "weights", "kept"),
    [
        (torch.optim.AdamW, 8192, 2 * 4 * 8192 + 4),
        (torch.optim.SGD, 8192, 0),
        (Adam8bit, 8192, 2 * (8192 + 4 * 8192 // 256 + 4 * 256)),
        (Adam8bit, 1024, 2 * 4 * 1024),
    ],
)
def test_the_state_of_an_optimizer_is_found(kind, weights, kept):
    optimizer = optimizer_after_step(kind, nn.Parameter(torch.ones(weights)))
    assert storage_bytes(optimizer_tensors(optimizer)) == kept


def test_an_optimizer_has_no_state_before_its_first_step():
    assert optimizer_tensors(torch.optim.AdamW([nn.Parameter(torch.ones(8))])) == []


class FakeZero:
    """Fake ZeRO optimizer of DeepSpeed: wraps the real optimizer, with 32-bit copies in the stage's attribute."""

    def __init__(self, inner, name, copies):
        self.optimizer = inner
        setattr(self, name, copies)


@pytest.mark.parametrize("name", ["single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"])
def test_copies_of_parameters_in_an_optimizer_that_wraps_another_are_counted(name):
    copy = nn.Parameter(torch.ones(100))
    wrapped = FakeZero(optimizer_after_step(torch.optim.AdamW, copy), name, [copy])
    assert storage_bytes(optimizer_tensors(wrapped)) == 3 * 400 + 4


@pytest.mark.parametrize(("nested", "scales"), [(False, 4 * 64 + 4 * 16), (True, 64 + 4 * 16 + 4 * 1 + 4 * 256 + 4)])
def test_the_scales_of_a_4_bit_weight_count_as_the_weight(nested, scales):
    plain: Any = Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4", compress_statistics=nested)
    weight = plain.to("cpu")
    assert storage_bytes(parameter_tensors(weight)) == 64 * 64 // 2 + scales


def test_a_rank_s_part_of_a_sharded_parameter_counts_as_the_parameter():
    parameter: Any = nn.Parameter(torch.empty(0))
    assert storage_bytes(parameter_tensors(parameter)) == 0
    parameter.ds_tensor = torch.ones(100)
    assert storage_bytes(parameter_tensors(parameter)) == 400


def test_the_memory_of_a_process_is_the_sum_of_its_gpus(monkeypatch):
    """Fake CUDA counters: GPU 1 has 10 bytes allocated, GPU 2 has 20, and so on."""
    began: list[Any] = []
    for name, factor in (("memory_allocated", 10), ("max_memory_allocated", 100), ("max_memory_reserved", 1000)):
        monkeypatch.setattr(torch.cuda, name, lambda gpu, factor=factor: factor * gpu)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", began.append)
    meter = CudaMeter(range(1, 3))
    meter.begin("forward")
    assert (meter.allocated(), meter.peak(), meter.peak_reserved()) == (30, 300, 3000)
    assert began == [1, 2]
