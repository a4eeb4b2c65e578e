"""A training loop with transformers' Trainer.

    python -m experiments.prediction.loops.trainer JOB

JOB: a LoopJob as JSON text. For several ranks, start this module with torchrun.
"""

from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from experiments.prediction.custom import TRAINER_MAX_GRADIENT_NORM
from experiments.prediction.loops.build import build_model
from experiments.prediction.loops.job import LoopJob, run_program
from experiments.prediction.loops.optimizers import find_optimizer
from experiments.prediction.loops.packing import make_batch
from experiments.prediction.loops.samples import make_stated_sample
from experiments.prediction.script.traced.stated import temporary_folder

STEPS = 10
FSDP_CONFIGS: dict[int | None, dict[str, Any]] = {
    None: {},
    1: {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 1, "use_orig_params": True}},
    2: {"fsdp": True, "fsdp_config": {"version": 2}},
}
"""Arguments of TrainingArguments by version of FSDP; None: no FSDP."""


def train(job: LoopJob) -> None:
    """Train for STEPS optimizer steps on samples of one length, without logs and checkpoints."""
    with temporary_folder("loop") as folder:
        _train(job, folder)


def _train(job: LoopJob, folder: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulate,
        max_steps=STEPS,
        bf16=job.precision == "bf16-mixed",
        fp16=job.precision == "16-mixed",
        gradient_checkpointing=job.checkpointing,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_grad_norm=TRAINER_MAX_GRADIENT_NORM if job.clip_norm is None else job.clip_norm,
        **FSDP_CONFIGS[job.fsdp],
    )
    model = build_model(job)
    data: Any = [make_stated_sample(model, job)] * (job.batch * job.accumulate * arguments.world_size * STEPS)
    optimizer = find_optimizer(job.optimizer, "adamw_fused")
    collate: Any = partial(make_batch, job=job) if job.packing else None
    Trainer(model, arguments, collate, data, optimizer_cls_and_kwargs=optimizer).train()


if __name__ == "__main__":
    run_program(train)
