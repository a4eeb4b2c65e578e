"""A training loop in plain PyTorch.

    python -m experiments.prediction.loops.plain JOB

JOB: a LoopJob as JSON text. For several ranks, start this module with torchrun.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from experiments.prediction.loops.build import AUTOCAST, build_model
from experiments.prediction.loops.job import LoopJob, run_program
from experiments.prediction.loops.optimizers import find_optimizer
from experiments.prediction.loops.packing import make_batch
from experiments.prediction.loops.samples import make_stated_sample
from experiments.prediction.loops.sharding import clip_gradients, shard
from experiments.training.models.backward_optimizer import BackwardOptimizer

STEPS = 10


def train(job: LoopJob) -> None:
    """Train for STEPS optimizer steps on samples of one length; gradients are freed after each optimizer step."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model = build_model(job).train()
    sample = make_stated_sample(model, job)
    if ranks > 1:
        dist.init_process_group("nccl")
    model = _place(model, job, ranks)
    optimizer_class, options = find_optimizer(job.optimizer, "adamw_foreach")
    build: Callable[..., torch.optim.Optimizer] = partial(optimizer_class, **options)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = BackwardOptimizer(build, trainable) if job.step_in_backward else build(trainable)
    autocast = None if job.fsdp else AUTOCAST.get(job.precision)  # FSDP casts the parameters instead
    scaler = torch.amp.GradScaler(enabled=autocast is torch.float16)
    for _ in range(STEPS):
        for _ in range(job.accumulate):
            batch = move_to_gpu(make_batch([sample] * job.batch, job))
            with torch.autocast("cuda", dtype=autocast) if autocast else nullcontext():
                loss = model(**batch).loss / job.accumulate
            scaler.scale(loss).backward()
        if job.clip_norm:
            scaler.unscale_(optimizer)
            clip_gradients(model, job.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def move_to_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch on the GPU; numbers stay on the host."""
    return {name: value.to("cuda") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _place(model: Any, job: LoopJob, ranks: int) -> Any:
    """Return the model on the GPU: with FSDP, only this rank's shard; with DDP, a replica."""
    if job.fsdp:
        return shard(model, job)
    model = model if job.quantization else model.to("cuda")
    return DistributedDataParallel(model, device_ids=[torch.cuda.current_device()]) if ranks > 1 else model


if __name__ == "__main__":
    run_program(train)
