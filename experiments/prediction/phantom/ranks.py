"""Simulate several ranks: this process is one rank, and collective operations complete at once."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp._init_utils as fsdp
from torch._C import _distributed_c10d as c10d
from torch.distributed import device_mesh
from torch.distributed.constants import default_pg_timeout
from torch.futures import Future

from experiments.prediction.phantom.exchange import RankStore, ValueExchange, receive_unknown_objects_as_none
from experiments.prediction.phantom.host_work import log_view_replacements_of_fsdp
from experiments.prediction.phantom.library import Phantom

NO_OP_COLLECTIVES = """
all_gather_single_coalesced allgather_coalesced allgather_into_tensor_coalesced allreduce_coalesced barrier
monitored_barrier reduce reduce_scatter reduce_scatter_single reduce_scatter_single_coalesced
reduce_scatter_tensor_coalesced _reduce_scatter_base
""".split()  # noqa: SIM905 - one word per line is harder to read


HOST_WAIT_PREFIX = '["aten::_local_scalar_dense'
"""Prefix of the keys of operations whose result the host waits for."""
OUTSIDE_BACKWARD = -1
"""PyTorch's id of the graph task outside of backward passes."""


class SimulatedGroup(c10d.ProcessGroup):
    """A process group of which only this rank exists. Its collective operations complete at once.

    Unknown values stay as they are, and a gather returns this rank's input for every rank. Therefore, a check that all
    ranks have equal values always passes. Known values, such as objects and small integers, come from the lower ranks.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, phantom: Phantom) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._rank, self._size, self._phantom = rank, size, phantom
        self.exchange = ValueExchange(store, rank, size, phantom)
        self._kept_tensors: list[Any] = []
        self._last_pass = OUTSIDE_BACKWARD
        self._kept_at = 0

    def size(self) -> int:
        return self._size

    def getBackendName(self) -> str:
        return "lone"

    def keep_until_next_collective(self, tensors: list[Any]) -> None:
        """Keep the tensors of an asynchronous reduction in a backward pass until a collective operation after the pass.

        NCCL's group does the same: it frees the tensors at the first collective operation after its watchdog has seen
        the end of the reduction (ProcessGroupNCCL::shelvesToUnstash_). DDP replaces its first buckets before the second
        forward pass, so the old and the new buckets exist together. DDP's own broadcasts free nothing, because they run
        before the watchdog's check, unless the host has waited for the GPU since the pass. Lightning waits at the end
        of each step.
        """
        current_pass = torch._C._current_graph_task_id()
        if current_pass != self._last_pass:
            self._kept_tensors.clear()
        self._last_pass = current_pass
        if current_pass != OUTSIDE_BACKWARD:
            self._kept_tensors += tensors
            self._kept_at = self._phantom.operation_count()

    def free_if_host_waited(self) -> None:
        """Free the kept tensors if the host has waited for the GPU since they were kept."""
        if self._kept_tensors and any(
            key.startswith(HOST_WAIT_PREFIX)
            for key in self._phantom.operations(self._kept_at, self._phantom.operation_count())
        ):
            self._kept_tensors.clear()

    def log(self, name: str, *arguments: Any) -> None:
        """Log a collective operation with the size of its largest argument, in bytes."""
        size = max((sum(tensor.nbytes for tensor in _flatten(one)) for one in arguments), default=0)
        self._phantom.log_operation(
            json.dumps([f"communication::{name}", {"type": "Byte", "sizes": [size]}, self._size])
        )

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        self.log("allgather", outputs)
        for row, tensor in zip(outputs, inputs, strict=True):
            for output in row:
                output.copy_(tensor)
            self.exchange.gather(row, tensor)
        return _free_kept_and_complete(self, outputs)

    def all_gather_single(self, output: Any, tensor: Any, options: Any = None) -> Any:
        self.log("allgather", output)
        output.view(self._size, -1).copy_(tensor.view(1, -1))
        self.exchange.gather(output.view(self._size, -1).unbind(), tensor)
        return _free_kept_and_complete(self, [output])

    _allgather_base = all_gather_single  # type: ignore[assignment]

    def _set_group_name(self, name: str) -> None:
        super()._set_group_name(name)  # type: ignore[arg-type]
        self._name = name

    @property
    def group_name(self) -> str:  # type: ignore[override]
        return self._name

    pg_name = group_name


class CompletedWork(c10d.Work):
    """A collective operation that has ended.

    ``wait`` does not record a use of the tensors on the waiting stream, as NCCL's does not. Only the future does so.
    """

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self._tensors = tensors

    def wait(self, *_: Any, **__: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    is_success = is_completed

    def synchronize(self) -> None: ...

    def result(self) -> Any:
        return self._tensors

    def get_future(self) -> Future[Any]:
        future: Future[Any] = Future(devices=[torch.device("cuda", 0)])
        future.set_result(self._tensors)
        return future


def _complete(group: SimulatedGroup, *arguments: Any, **_: Any) -> CompletedWork:
    return CompletedWork(arguments[0] if arguments else None)


def _free_kept_and_complete(group: SimulatedGroup, *arguments: Any, **_: Any) -> Any:
    group.keep_until_next_collective([])
    return _complete(group, *arguments)


def _flatten(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value for tensor in _flatten(one)] if isinstance(value, list | tuple) else []


def _make_logged_collective(name: str) -> Callable[..., Any]:
    def collective(group: SimulatedGroup, *arguments: Any, **_: Any) -> Any:
        group.log(name, *arguments)
        return _free_kept_and_complete(group, *arguments)

    return collective


def _broadcast(group: SimulatedGroup, tensors: Any, options: Any = None) -> Any:
    group.log("broadcast", tensors)
    if options is not None:
        group.exchange.broadcast(tensors, options.rootRank)
    group.free_if_host_waited()
    return _complete(group, tensors)


def _allreduce(group: SimulatedGroup, tensors: Any, options: Any = None) -> Any:
    group.log("allreduce", tensors)
    group.keep_until_next_collective(tensors if options is not None and options.asyncOp else [])
    if options is not None:
        for tensor in tensors:
            group.exchange.reduce(tensor, options.reduceOp)
    return _complete(group, tensors)


def _alltoall(group: SimulatedGroup, outputs: Any, inputs: Any, options: Any = None) -> Any:
    group.log("alltoall", outputs, inputs)
    group.exchange.exchange_all(outputs, inputs)
    return _free_kept_and_complete(group, outputs)


def _all_to_all_single(
    group: SimulatedGroup, output: Any, tensor: Any, output_sizes: Any, input_sizes: Any, options: Any = None
) -> Any:
    group.log("all_to_all_single", output, tensor)

    def parts(whole: torch.Tensor, sizes: Any) -> Any:
        return whole.split(list(sizes) or [len(whole) // group.size()] * group.size())

    group.exchange.exchange_all(parts(output, output_sizes), parts(tensor, input_sizes))
    return _free_kept_and_complete(group, [output])


def _gather(group: SimulatedGroup, outputs: Any, inputs: Any, options: Any = None) -> Any:
    group.log("gather", outputs)
    for number, tensor in enumerate(inputs):
        group.exchange.gather(outputs[number] if outputs else [], tensor)
    return _free_kept_and_complete(group, outputs)


def _scatter(group: SimulatedGroup, outputs: Any, inputs: Any, options: Any) -> Any:
    group.log("scatter", inputs)
    for number, tensor in enumerate(outputs):
        group.exchange.scatter(tensor, inputs[number] if inputs else [], options.rootRank)
    return _free_kept_and_complete(group, outputs)


def _send(group: SimulatedGroup, tensors: Any, receiver: int, tag: int) -> Any:
    group.log("send", tensors)
    group.exchange.send(tensors[0], receiver, tag)
    return _free_kept_and_complete(group, tensors)


def _recv(group: SimulatedGroup, tensors: Any, sender: int, tag: int) -> Any:
    group.log("recv", tensors)
    group.exchange.receive(tensors[0], sender, tag)
    return _free_kept_and_complete(group, tensors)


for _name in NO_OP_COLLECTIVES:
    setattr(SimulatedGroup, _name, _make_logged_collective(_name.strip("_")))
for _collective in (_allreduce, _all_to_all_single, _alltoall, _broadcast, _gather, _scatter, _send, _recv):
    setattr(SimulatedGroup, _collective.__name__.strip("_"), _collective)
SimulatedGroup.alltoall_base = _all_to_all_single  # type: ignore[assignment]  # its name before PyTorch 2.13


def simulate_ranks(devices: int, nodes: int, phantom: Phantom, folder: Path, rank: int = 0) -> None:
    """Set up this process as rank ``rank`` of ``devices`` * ``nodes`` ranks, as if torchrun had started it.

    devices: GPUs of each node. Collective operations are written to the log of the phantom device (``phantom``).
    ``folder`` contains the known values that the ranks send; lower ranks must have run with the same folder.
    """
    world = devices * nodes
    if world > 1:
        phantom.ignore_gpu_numbers()
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
    _simulate_groups(phantom)
    log_view_replacements_of_fsdp(phantom)
    _share_store(RankStore(folder, rank), rank, world)
    receive_unknown_objects_as_none()
    setattr(dist.Logger, "set_runtime_stats_and_log", lambda _: None)  # noqa: B010 - the original reads CUDA events
    setattr(fsdp, "_get_compute_device", lambda *_: torch.device("cuda", 0))  # noqa: B010 - the only one, on any rank
    torch.cuda.device_count = lambda: devices


def _simulate_groups(phantom: Phantom) -> None:
    """Make every group a simulated one, which reports the backend that the program asked for."""
    dist.Backend.register_backend(
        "lone", lambda store, rank, size, timeout: SimulatedGroup(store, rank, size, phantom), devices=["cpu", "cuda"]
    )
    world, make = dist.distributed_c10d._world, dist.distributed_c10d._new_process_group_helper

    def make_simulated(size: int, rank: int, ranks: list[int], backend: str, *more: Any, **options: Any) -> Any:
        group, store = make(size, rank, ranks, dist.Backend("lone"), *more, **options)
        if isinstance(group, SimulatedGroup):
            world.pg_map[group] = dist.Backend(backend), store
        return group, store

    setattr(dist.distributed_c10d, "_new_process_group_helper", make_simulated)  # noqa: B010 - not in the stubs
    setattr(dist.distributed_c10d, "default_pg_nccl_timeout", default_pg_timeout)  # noqa: B010 - not in the stubs
    dist.is_nccl_available = lambda: True


def replace_init_process_group(function: Callable[..., None]) -> None:
    """Replace init_process_group in each module of PyTorch that has imported it by name."""
    for module in (dist, dist.distributed_c10d, device_mesh):
        setattr(module, "init_process_group", function)  # noqa: B010 - not in the stubs


def _share_store(store: RankStore, rank: int, world: int) -> None:
    """Make all stores and the default group use ``store``, whatever their arguments."""
    start = dist.init_process_group

    def init_process_group(backend: str | None = None, *_: Any, **__: Any) -> None:
        start(backend=backend, store=store, rank=rank, world_size=world)

    replace_init_process_group(init_process_group)
    dist.rendezvous = lambda *_, **__: iter([(store, rank, world)])
    for kind in ("TCPStore", "FileStore"):
        setattr(dist, kind, functools.partial(_named_store, store, kind))


def _named_store(store: RankStore, kind: str, *arguments: Any, **_: Any) -> dist.Store:
    """Return the part of ``store`` for a store of PyTorch with these arguments: host and port, or a file."""
    return dist.PrefixStore(f"{kind} {' '.join(map(str, arguments[:2]))}", store)
