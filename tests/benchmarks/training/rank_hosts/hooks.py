"""Measure the time that the host needs for the hooks of DDP and FSDP, around layers that need the GPU briefly."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.training.rank_hosts.fitting import DDP_LAYERS

RANKS, ITERATIONS, WARM_UP, WIDTH, WIDE = 2, 12, 4, 64, 2048
UNITS = ((8, 1), (8, 4), (8, 16), (32, 4), (32, 16), (1, 128))
"""Numbers of units, and of layers in each."""
MULTICAST_OFF = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}


class Chain(nn.Sequential):
    """Layers with one parameter each, (width, width)."""

    def __init__(self, layers: int, width: int = WIDTH) -> None:
        super().__init__(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def cases(device: torch.device) -> Iterator[tuple[str, int, Callable[[], nn.Module]]]:
    """Yield the name of each case, its width, and a function that builds its model."""

    def chain(width: int) -> nn.Module:
        return Chain(DDP_LAYERS, width).to(device, torch.bfloat16)

    def units(count: int, layers: int) -> nn.Module:
        return nn.Sequential(*(Chain(layers) for _ in range(count))).to(device, torch.bfloat16)

    def sharded(count: int, layers: int) -> nn.Module:
        policy = ModuleWrapPolicy({Chain})
        return FullyShardedDataParallel(
            units(count, layers), auto_wrap_policy=policy, device_id=device, use_orig_params=True
        )

    for kind, width in (("together", WIDTH), ("wide", WIDE)):
        yield f"plain, {kind}, {DDP_LAYERS} parameters", width, partial(chain, width)
    yield f"ddp, {DDP_LAYERS} parameters", WIDTH, lambda: DistributedDataParallel(chain(WIDTH), [device.index])
    yield f"ddp, wide, {DDP_LAYERS} parameters", WIDE, lambda: DistributedDataParallel(chain(WIDE), [device.index])
    for count, layers in UNITS:
        yield f"plain, {count} units of {layers}", WIDTH, partial(units, count, layers)
        yield f"fsdp, use_orig_params True, {count} units of {layers}", WIDTH, partial(sharded, count, layers)


def measure_rank(rank: int, address: tuple[str, int]) -> list[dict[str, Any]]:
    """Return the median seconds of the host in the passes of each case, and its waits for the GPU in them.

    address: host and port of a TCPStore.
    """
    os.environ |= MULTICAST_OFF
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    waits = count_waits()
    store = dist.TCPStore(*address, is_master=False)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    found = []
    for name, width, build in cases(device):
        found.append({"case": name, "rank": rank, **measure_passes(build(), width, device, waits)})
        torch.cuda.empty_cache()
    dist.destroy_process_group()
    return found


def count_waits() -> list[float]:
    """Make FSDP's waits for the GPU add their seconds to the returned list."""
    waits: list[float] = []
    plain = torch.cuda.Event.synchronize

    def synchronize(event: torch.cuda.Event) -> None:
        begun = time.perf_counter()
        plain(event)
        waits.append(time.perf_counter() - begun)

    setattr(torch.cuda.Event, "synchronize", synchronize)  # noqa: B010 - a method
    return waits


def measure_passes(model: nn.Module, width: int, device: torch.device, waits: list[float]) -> dict[str, float]:
    """Return the median seconds of the host in a forward and a backward pass, and its waits in both."""
    x = torch.randn(8, width, device=device, dtype=torch.bfloat16)
    seconds: dict[str, list[float]] = {"forward_s": [], "backward_s": [], "wait_s": []}
    for _ in range(ITERATIONS):
        model.zero_grad(set_to_none=True)
        dist.barrier()
        torch.cuda.synchronize()
        waits.clear()
        begun = time.perf_counter()
        loss = model(x).sum()
        seconds["forward_s"].append(time.perf_counter() - begun)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        loss.backward()
        seconds["backward_s"].append(time.perf_counter() - begun)
        torch.cuda.synchronize()
        seconds["wait_s"].append(sum(waits))
    return {name: round(median(values[WARM_UP:]), 6) for name, values in seconds.items()}
