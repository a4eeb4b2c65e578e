"""Fake rank: experiments.training.rank with a fake engine that fails on request. Started like a rank.

FAULT is the failure of rank 1 in its second micro-step: oom, killed, hang, error, wrong (a user error; "wrong, ends
late": the other rank fails before this one has ended), quiet (out of memory in a kernel that ends the process). SCATTER
is the number of the rank whose step times vary. The ranks communicate through a real collective.
"""

import atexit
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
from experiments.training.measure.flops import FlopCount
from experiments.training.measure.meters import StorageMeter
from experiments.training.measure.schedule import build_schedule

BATCH = {"input_ids": torch.ones(2, 7, dtype=torch.int64)}


class FakeOptimizer:
    """An optimizer with the state of AdamW that changes nothing. PyTorch's own imports a compiler, which takes 2 s."""

    def __init__(self, parameters):
        self._parameters = list(parameters)
        self.state = {}

    def step(self):
        for one in self._parameters:
            self.state.setdefault(one, {name: torch.zeros_like(one) for name in ("exp_avg", "exp_avg_sq")})


def disable_import_of_compiler():
    """Let the modes that count memory and operations run without PyTorch's compiler, whose import takes 2 s.

    PyTorch imports it to exclude the modes from compilation. The fake engine compiles nothing.
    """
    for mode in (StorageMeter, FlopCount):
        setattr(mode, "__torch_dispatch__", getattr(mode.__torch_dispatch__, "__wrapped__"))  # noqa: B009, B010


def hang():
    time.sleep(600)


def inject_fault(fault):
    print("fault injected at", time.time(), flush=True)
    if fault == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has")
    if fault == "error":
        raise ValueError("shapes differ")
    if fault in ("wrong", "wrong, ends late"):
        if fault == "wrong, ends late":
            atexit.register(hang)
        raise InputError("max_length = 8: too short")
    if fault == "hang":
        hang()
    if fault == "quiet":
        print("CUDA error: out of memory", flush=True)
        os.abort()
    if fault == "killed":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGKILL)


def fake_timer(probe, scatter):
    """Return a fake timer function, whose times are either equal or vary."""
    return lambda: [1.0 + scatter * (number % 2) for number in range(probe.micro_steps)]


def train(spec, probe, out):
    dist.init_process_group("gloo")
    rank_number = dist.get_rank()
    model = torch.nn.Linear(64, 64 * (rank_number + 1))
    optimizer = FakeOptimizer(model.parameters())
    probe.set_model(model, lambda: [optimizer])
    probe.start(build_schedule(spec, (spec.settings.train_samples or 0) // 4))
    probe._timer.intervals_s = fake_timer(probe, scatter=os.environ.get("SCATTER") == str(rank_number))
    ended = False
    while not ended:
        probe.before_forward(BATCH)
        loss = model(torch.ones(1, 64)).sum() * 0 + rank_number
        probe.after_forward(loss)
        if probe.micro_steps == 1:
            time.sleep(0.6)  # until the next progress.json
        probe.before_backward()
        loss.backward()
        if rank_number == 1 and probe.micro_steps == 1 and "FAULT" in os.environ:
            inject_fault(os.environ["FAULT"])
        if rank_number == 0 and probe.micro_steps == 1 and os.environ.get("FAULT") == "wrong, ends late":
            while not (out.parent / "rank-1" / "rejection.txt").exists():
                time.sleep(0.05)
            raise RuntimeError("Connection closed by peer")
        dist.all_reduce(torch.ones(1))
        probe.after_backward()
        probe.before_optimizer_step()
        optimizer.step()
        ended = probe.after_batch()


if __name__ == "__main__":
    disable_import_of_compiler()
    sys.modules["experiments.training.engines.lightning"] = SimpleNamespace(train=train)  # type: ignore[assignment]
    sys.exit(rank.main(*sys.argv[1:]))
