"""The simulated process group frees reduced gradient buckets at the same time as NCCL's process group."""

import weakref
from collections import Counter
from typing import Any

import pytest
import torch

from experiments.prediction.phantom import ranks
from experiments.prediction.phantom.ranks import SimulatedGroup

READ = '["aten::_local_scalar_dense.default",{"type":"Float","sizes":[]}]'


class FakePhantom:
    """A device that logs the keys that a test gives it."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def log_operation(self, key: str) -> None:
        self.keys.append(key)

    def operation_count(self) -> int:
        return len(self.keys)

    def operations(self, begin: int, end: int) -> Counter[str]:
        return Counter(self.keys[begin:end])


@pytest.fixture
def phantom() -> FakePhantom:
    return FakePhantom()


@pytest.fixture
def group(phantom: FakePhantom, monkeypatch: pytest.MonkeyPatch) -> SimulatedGroup:
    monkeypatch.setattr(ranks, "_complete", lambda *given, **_: None)  # a result on the phantom device
    return SimulatedGroup(torch.distributed.HashStore(), 0, 2, phantom)  # type: ignore[arg-type]


def bucket_reduced_in_a_backward_pass(group: Any) -> "weakref.ref[torch.Tensor]":
    """Reduce a bucket in a backward pass as DDP does; return a reference that ends when the group frees it."""
    buckets = [torch.ones(8)]
    kept = weakref.ref(buckets[0])
    weight = torch.ones(1, requires_grad=True)
    options = torch.distributed.AllreduceOptions()
    options.asyncOp = True
    weight.register_hook(lambda _: group.allreduce([buckets.pop()], options))
    (2 * weight).sum().backward()
    return kept


def test_a_reduced_bucket_stays_allocated_until_a_collective_operation_that_is_no_broadcast(group: Any) -> None:
    kept = bucket_reduced_in_a_backward_pass(group)
    group.broadcast([torch.ones(1)])
    assert kept() is not None
    group.barrier()
    assert kept() is None


def test_a_broadcast_frees_a_bucket_if_the_host_read_a_value_after_its_reduction(
    group: Any, phantom: FakePhantom
) -> None:
    phantom.keys.append(READ)
    kept = bucket_reduced_in_a_backward_pass(group)
    group.broadcast([torch.ones(1)])
    assert kept() is not None, "the value was read before the bucket was reduced"
    phantom.keys.append(READ)
    group.broadcast([torch.ones(1)])
    assert kept() is None


def test_the_next_backward_pass_frees_the_bucket_of_the_previous_one(group: Any) -> None:
    first = bucket_reduced_in_a_backward_pass(group)
    second = bucket_reduced_in_a_backward_pass(group)
    assert first() is None
    assert second() is not None
