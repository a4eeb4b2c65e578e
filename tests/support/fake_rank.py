"""A stand-in for experiments.training.rank: the real one with a toy in the engine's place, made to fail on request.

Started like a rank. FAULT names what strikes rank 1 in its second micro-step: oom, killed, hang, error, wrong (a user's
mistake), quiet (memory runs out in a kernel that ends the process). SCATTER is the rank whose steps take unlike times.
Ranks meet in a real collective.
"""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist

from experiments.errors import InputError
from experiments.training import rank
from experiments.training.measure.schedule import schedule_of

BATCH = {"input_ids": torch.ones(2, 7, dtype=torch.int64)}


def stuck():
    time.sleep(600)


def strike(fault):
    print("struck at", time.time(), flush=True)
    if fault == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has")
    if fault == "error":
        raise ValueError("shapes differ")
    if fault == "wrong":
        raise InputError("max_length = 8: too short")
    if fault == "hang":
        stuck()
    if fault == "quiet":
        print("CUDA error: out of memory", flush=True)
        os.abort()
    if fault == "killed":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGKILL)


def times(probe, scatter):
    """A stub of the clock: times that are all alike, or that scatter."""
    return lambda: [1.0 + scatter * (number % 2) for number in range(probe.micro_steps)]


def train(spec, probe, out):
    dist.init_process_group("gloo")
    own = dist.get_rank()
    model = torch.nn.Linear(64, 64 * (own + 1))
    optimizer = torch.optim.AdamW(model.parameters())
    probe.watch(model, lambda: [optimizer])
    probe.start(schedule_of(spec, (spec.settings.train_samples or 0) // 4))
    probe._clock.intervals_s = times(probe, scatter=os.environ.get("SCATTER") == str(own))
    ended = False
    while not ended:
        probe.before_forward(BATCH)
        loss = model(torch.ones(1, 64)).sum() * 0 + own
        probe.after_forward(loss)
        if probe.micro_steps == 1:
            time.sleep(0.6)  # until progress is written again
        probe.before_backward()
        loss.backward()
        if own == 1 and probe.micro_steps == 1 and "FAULT" in os.environ:
            strike(os.environ["FAULT"])
        dist.all_reduce(torch.ones(1))
        probe.after_backward()
        probe.before_optimizer_step()
        optimizer.step()
        ended = probe.after_batch()


if __name__ == "__main__":
    sys.modules["experiments.training.engines.lightning"] = SimpleNamespace(train=train)
    sys.exit(rank.main(*sys.argv[1:]))
