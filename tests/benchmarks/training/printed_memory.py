"""Record the memory that the lab's scripts print after each forward pass: allocated and reserved.

    python -m tests.benchmarks.training.printed_memory [--row 7b-1gpu-acc4] [--micro-steps 100] [--size full]
        [--out FILE]

Trains a row of one GPU with the plain script of lab_script_speed, within the memory limit of the row's card, with its
texts in the original order. The project's results have the highest reserved memory. This program shows how much memory
remains reserved after the allocator has freed unused blocks because the card was full. ``retries`` counts how often
that happened.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.results.provenance import git_commit
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB, write_atomically
from experiments.training.data.texts import build_text_loader, open_texts
from experiments.training.device import open_device
from experiments.training.models.litgpt import build_litgpt
from tests.benchmarks.rows import row_spec
from tests.benchmarks.training.lab_script_speed import CARD, SUITE, PlainTuner

COMMAND = "python -m tests.benchmarks.training.printed_memory"


class RecordingTuner(PlainTuner):
    """Tuner that records what it prints: GiB allocated and reserved, and the count of retries."""

    def __init__(self, spec: RowSpec, model: torch.nn.Module) -> None:
        super().__init__(spec, model)
        self.records: list[tuple[float, float, int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        self.records.append((allocated / GIB, reserved / GIB, torch.cuda.memory_stats().get("num_alloc_retries", 0)))
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", default="7b-1gpu-acc4")
    parser.add_argument("--micro-steps", type=int, default=100)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    taught = row_spec(SUITE, options.row, CARD, options.size, "as-taught")
    settings = taught.settings.model_copy(update={"max_steps": options.micro_steps // taught.settings.accumulate})
    spec = taught.model_copy(update={"settings": settings})
    device = open_device(spec)
    model = build_litgpt(spec, torch.device(device.kind))
    tuner = RecordingTuner(spec, model)
    trainer = L.Trainer(
        accelerator="gpu" if device.kind == "cuda" else "cpu",
        devices=1,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        max_steps=settings.max_steps,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(tuner, build_text_loader(spec, open_texts(spec, model.config.vocab_size), None))
    results: dict[str, Any] = {
        "command": f"{COMMAND} --row {options.row} --micro-steps {options.micro_steps}",
        "row": f"{SUITE}/{options.row}",
        "device": device.name,
        "cap_gib": device.cap_gib,
        "git_commit": git_commit(),
        "most_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "last": dict(zip(("allocated_gib", "reserved_gib", "retries"), tuner.records[-1], strict=True)),
        "after_forward": [
            [round(allocated, 2), round(reserved, 2), retries] for allocated, reserved, retries in tuner.records
        ],
    }
    print(json.dumps(results))
    if options.out:
        write_atomically(options.out, json.dumps(results))


if __name__ == "__main__":
    main()
