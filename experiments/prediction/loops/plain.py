"""A training loop in plain PyTorch.

    python -m experiments.prediction.loops.plain JOB

JOB: a LoopJob as JSON text. For several ranks, start this module with torchrun.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist

from experiments.prediction.loops.build import AUTOCAST, build_model
from experiments.prediction.loops.job import LoopJob, run_program
from experiments.prediction.loops.optimizers import find_optimizer
from experiments.prediction.loops.samples import make_sample
from experiments.training.models.backward_optimizer import BackwardOptimizer

STEPS = 10


def train(job: LoopJob) -> None:
    """Train for STEPS optimizer steps on samples of one length; gradients are freed after each optimizer step."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model = build_model(job)
    model = (model if job.quantization else model.to("cuda")).train()
    sample = make_sample(model, job)
    if ranks > 1:
        dist.init_process_group("nccl")
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
    optimizer_class, options = find_optimizer(job.optimizer, "adamw_foreach")
    build: Callable[..., torch.optim.Optimizer] = partial(optimizer_class, **options)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = BackwardOptimizer(build, trainable) if job.step_in_backward else build(trainable)
    autocast = AUTOCAST.get(job.precision)
    scaler = torch.amp.GradScaler(enabled=autocast is torch.float16)
    for _ in range(STEPS):
        for _ in range(job.accumulate):
            batch = {name: torch.stack([value] * job.batch).to("cuda") for name, value in sample.items()}
            with torch.autocast("cuda", dtype=autocast) if autocast else nullcontext():
                loss = model(**batch).loss / job.accumulate
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


if __name__ == "__main__":
    run_program(train)
