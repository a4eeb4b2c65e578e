"""Other ranks that are not there: this process is rank 0 of a world whose collectives are over at once."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


def replace_ranks(devices: int, nodes: int) -> None:
    """Pose as the first of ``devices`` x ``nodes`` ranks, as torchrun would have started it."""
    world = devices * nodes
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "phantom",
    }
    start = dist.init_process_group

    def init_process_group(*_: Any, **__: Any) -> None:
        start(backend="fake", store=FakeStore(), rank=0, world_size=world)

    dist.init_process_group = init_process_group
    dist.distributed_c10d.init_process_group = init_process_group
    torch.cuda.device_count = lambda: devices
