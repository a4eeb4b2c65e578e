"""Compare the speed of a multi-GPU row with a plain script like the lab's, on the same GPUs in one run.

    python -m tests.benchmarks.training.lab_script_speed [--row 7b-4gpu-ddp] [--gpus N] [--size full] [--rounds 2]
        [--out FILE]

The plain script: LitGPT's model in a LightningModule, Lightning's Trainer with default strategies, a progress bar with
the loss, and a printed line on memory after each forward pass. The script and the row run in turns, each with its own
ranks, on the same model and the same STEPS batches. The reported numbers are medians over the rounds of the median
micro-step, without the first two and the last two.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from litgpt.utils import chunked_cross_entropy

from experiments.results.provenance import git_commit
from experiments.results.schema import SPEC_FILE
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB, write_atomically
from experiments.training.data.texts import batches_per_epoch, build_text_loader, open_texts
from experiments.training.device import open_device
from experiments.training.distributed.ranks import LOCAL_ADDRESS, free_port
from experiments.training.measure.schedule import build_schedule
from experiments.training.measure.step_timer import StepTimer
from experiments.training.models.litgpt import build_litgpt
from experiments.training.models.optimizers import build_optimizer
from experiments.training.worker import run_row
from tests.benchmarks.rows import row_spec

SUITE, CARD = "multi_gpu_litgpt", "a100_80gb"
STEPS = 24
LEFT_OUT = 2
LIMIT_S = 240
FIGURE_FILE = "micro_step_s.json"


class PlainTuner(L.LightningModule):
    """LightningModule that shows the loss in the progress bar and prints the memory."""

    def __init__(self, spec: RowSpec, model: torch.nn.Module) -> None:
        super().__init__()
        self.spec, self.model = spec, model

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        logits = self.model(batch["input_ids"])
        loss = chunked_cross_entropy(logits[..., :-1, :], batch["labels"][..., 1:])
        self.log("train_loss", loss, prog_bar=True)
        if self.device.type == "cuda":
            allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
            print(f"allocated {allocated / GIB:.2f} GiB, reserved {reserved / GIB:.2f} GiB")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.spec.settings, self.parameters())


class Stopwatch(L.Callback):
    """Callback that measures the times of the micro-steps."""

    def __init__(self, cuda: bool) -> None:
        self.timer = StepTimer(cuda)

    def on_train_batch_end(self, *_: Any) -> None:
        self.timer.record()


def run_as_rank(spec: RowSpec, out: Path) -> None:
    """Train like the plain script as one of torchrun's ranks; the first rank writes its time."""
    device = open_device(spec)
    settings = spec.settings
    model = build_litgpt(spec, torch.device(device.kind))
    texts = open_texts(spec, model.config.vocab_size)
    schedule = build_schedule(spec, batches_per_epoch(spec, texts))
    watch = Stopwatch(device.kind == "cuda")
    strategy = DDPStrategy() if settings.strategy == "ddp" else FSDPStrategy(sharding_strategy="FULL_SHARD")
    trainer = L.Trainer(
        accelerator="gpu" if device.kind == "cuda" else "cpu",
        devices=settings.devices,
        strategy=strategy,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        callbacks=[watch],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(PlainTuner(spec, model), build_text_loader(spec, texts, schedule.longest_batch_index))
    if trainer.is_global_zero:
        write_atomically(out / FIGURE_FILE, json.dumps(median(watch.timer.intervals_s()[LEFT_OUT - 1 : -LEFT_OUT])))


def plain_s(spec: RowSpec) -> float:
    """Return the seconds of a micro-step of the plain script."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SPEC_FILE).write_text(spec.model_dump_json())
        ranks = ["--nproc-per-node", str(spec.settings.devices), "--master-addr", LOCAL_ADDRESS]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *ranks, "--master-port", str(free_port())]
        command = [*torchrun, "--module", "tests.benchmarks.training.lab_script_speed", "--as-rank", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        try:
            errors = process.communicate(timeout=spec.settings.time_limit_s)[1].decode()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise SystemExit(f"the plain script did not end within {spec.settings.time_limit_s} s") from None
        if process.returncode:
            raise SystemExit(errors)
        return float(json.loads((Path(folder) / FIGURE_FILE).read_text()))


def project_s(spec: RowSpec) -> float:
    """Return the seconds of a micro-step of the row in this project."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_row(spec, Path(folder), "")
    if result.speed is None:
        raise SystemExit(result.reason)
    return result.speed.micro_step_s


def figures(spec: RowSpec, rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the results so far: each round's seconds (plain, ours), and the ratio of their medians."""
    plain, jobs_to_cancel = (median(times) for times in zip(*rounds, strict=True))
    return {
        "command": "python -m tests.benchmarks.training.lab_script_speed",
        "row": f"{SUITE}/{spec.row}",
        "ranks": spec.settings.ranks,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "processor",
        "git_commit": git_commit(),
        "plain_micro_step_s": plain,
        "ours_micro_step_s": jobs_to_cancel,
        "samples_per_s_over_plain": plain / jobs_to_cancel,
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", default="7b-4gpu-ddp")
    parser.add_argument("--gpus", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank:
        run_as_rank(RowSpec.model_validate_json((options.as_rank / SPEC_FILE).read_bytes()), options.as_rank)
        return 0
    spec = row_spec(
        SUITE, options.row, CARD, options.size, "as-taught", options.gpus, max_steps=STEPS, time_limit_s=LIMIT_S
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    rounds: list[tuple[float, float]] = []
    for number in range(1, options.rounds + 1):
        rounds.append((plain_s(spec), project_s(spec)))
        results = figures(spec, rounds)
        print(
            f"round {number} of {options.rounds}: plain {rounds[-1][0]:.4f} s, ours {rounds[-1][1]:.4f} s", flush=True
        )
        if options.out:
            write_atomically(options.out, json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
