"""Simulated ranks: this process is one rank of a world whose collectives complete at once."""

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp._init_utils as fsdp
from torch._C import _distributed_c10d as c10d
from torch.futures import Future

_create_work: Any = getattr(c10d, "_create_work_from_future")  # noqa: B009 - not in the stubs
COLLECTIVES = """
all_gather_single_coalesced all_to_all_single allgather_coalesced allgather_into_tensor_coalesced
allreduce_coalesced alltoall alltoall_base barrier gather reduce reduce_scatter reduce_scatter_single
reduce_scatter_single_coalesced reduce_scatter_tensor_coalesced scatter _reduce_scatter_base
""".split()  # noqa: SIM905 - one line a word reads worse


NO_BACKWARD = -1
"""What PyTorch calls the time outside of backward passes."""


class LoneGroup(c10d.ProcessGroup):
    """A process group with one process in it, whose collectives change nothing.

    A gather returns this rank's input for every rank, so that checks for agreement between ranks pass.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._rank, self._size = rank, size
        self._shelf: list[Any] = []
        self._shelved_in = NO_BACKWARD

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:
        return "lone"

    def shelve(self, tensors: list[Any]) -> None:
        """Keep the tensors of an asynchronous reduction in a backward pass until a collective outside of that pass.

        NCCL's group keeps them until its watchdog has seen that the reduction is done, and frees them at the next
        collective (ProcessGroupNCCL::shelvesToUnstash_). DDP replaces its first buckets before the second forward
        pass, so that they exist together with the new ones. The broadcasts of DDP itself come before the watchdog.
        """
        now = torch._C._current_graph_task_id()
        if now != self._shelved_in:
            self._shelf.clear()
        self._shelved_in = now
        if now != NO_BACKWARD:
            self._shelf += tensors

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        for row, given in zip(outputs, inputs, strict=True):
            for output in row:
                output.copy_(given)
        return _over(self, outputs)

    def all_gather_single(self, output: Any, given: Any, options: Any = None) -> Any:
        output.view(self._size, -1).copy_(given.view(1, -1))
        return _over(self, [output])

    _allgather_base = all_gather_single  # type: ignore[assignment]

    @property
    def pg_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def group_name(self) -> str:  # type: ignore[override]
        return self.pg_name


def _done(group: LoneGroup, *given: Any, **_: Any) -> Any:
    done: Future[Any] = Future(devices=[torch.device("cuda", 0)])
    done.set_result(given[0] if given else None)
    return _create_work(done)


def _over(group: LoneGroup, *given: Any, **_: Any) -> Any:
    group.shelve([])
    return _done(group, *given)


def _allreduce(group: LoneGroup, tensors: Any, options: Any = None) -> Any:
    group.shelve(tensors if options is not None and options.asyncOp else [])
    return _done(group, tensors)


for _name in COLLECTIVES:
    setattr(LoneGroup, _name, _over)
for _name, _own in (("allreduce", _allreduce), ("broadcast", _done)):
    setattr(LoneGroup, _name, _own)


def replace_ranks(devices: int, nodes: int, rank: int = 0) -> None:
    """Set up this process as rank ``rank`` of ``devices`` x ``nodes`` ranks, as if torchrun had started it."""
    world = devices * nodes
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % devices),
        "GROUP_RANK": str(rank // devices),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "phantom",
    }
    dist.Backend.register_backend(
        "lone", lambda store, rank, size, timeout: LoneGroup(rank, size), devices=["cpu", "cuda"]
    )
    start = dist.init_process_group

    def init_process_group(*_: Any, **__: Any) -> None:
        start(backend="lone", store=c10d.HashStore(), rank=rank, world_size=world)

    dist.init_process_group = init_process_group
    dist.distributed_c10d.init_process_group = init_process_group
    setattr(dist.Logger, "set_runtime_stats_and_log", lambda _: None)  # noqa: B010 - it asks for CUDA's clocks
    setattr(fsdp, "_get_compute_device", lambda *_: torch.device("cuda", 0))  # noqa: B010 - the only one, on any rank
    torch.cuda.device_count = lambda: devices
