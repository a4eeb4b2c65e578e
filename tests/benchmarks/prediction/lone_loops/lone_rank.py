"""Run a program as the first of several ranks, which is alone: its collective operations do nothing.

    python -m tests.benchmarks.prediction.lone_loops.lone_rank RANKS PROGRAM ARGUMENT...

PROGRAM: a file, or `-m MODULE`. PyTorch's fake process group takes the place of NCCL's, so the program needs one GPU.
With RANKS = 1, there is no group, as without torchrun.
"""

import os
import sys
from typing import Any

from tests.benchmarks.prediction.unchanged_program import run_program


def replace_groups(ranks: int) -> None:
    """Set up this process as rank 0 of ``ranks`` ranks, as torchrun does; every process group is a fake one."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from experiments.prediction.phantom.ranks import replace_init_process_group

    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    start, store = dist.init_process_group, FakeStore()

    def init_process_group(backend: str | None = None, *_: Any, **__: Any) -> None:
        start(backend="fake", store=store, rank=0, world_size=ranks)

    replace_init_process_group(init_process_group)


if __name__ == "__main__":
    number, *program = sys.argv[1:]
    if int(number) > 1:
        replace_groups(int(number))
    run_program(program)
