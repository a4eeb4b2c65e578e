"""Compare the speed of a row with two ways to prepare images: in the loader's workers, and in the training step.

    python -m tests.benchmarks.training.image_loading [--row reduced-precision] [--size full] [--micro-steps 24]
        [--rounds 5] [--pixels 224] [--out FILE]

In the lab's method, every step turns its images and captions into tensors, and copies the loss to the CPU. Both methods
run in turns in one process on the same model, with the limits and kernels of the row's card. The reported numbers are
medians over the rounds of the median micro-step; the result is their ratio.
"""

import argparse
import gc
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import BlipImageProcessorPil

from experiments.results.provenance import git_commit
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.training.data.captions import CaptionDataset, build_caption_loader, open_captions
from experiments.training.data.collate import CaptionCollator, build_caption_collator
from experiments.training.data.sampler import SeededBatchSampler
from experiments.training.device import open_device
from experiments.training.engines.strategies import SingleDevice
from experiments.training.measure.step_timer import StepTimer
from experiments.training.models.build import build_model
from experiments.training.models.optimizers import build_optimizer
from tests.benchmarks.rows import row_spec

SUITE, CARD = "single_gpu_blip2", "a100_80gb"
WARM_UP = 8
Seconds = tuple[float, float]


class LabMethod(L.LightningModule):
    """The lab's method: batches are raw, and the training step prepares them."""

    def __init__(self, spec: RowSpec, model: torch.nn.Module, collator: CaptionCollator | None) -> None:
        super().__init__()
        self.spec, self.model, self.collator = spec, model, collator

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.collator is None:
            return self.model(**batch).loss
        tensors = {key: value.to(self.device) for key, value in self.collator(batch).items()}
        loss = self.model(**tensors).loss
        loss.item()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.spec.settings, self.model.parameters())


class Stopwatch(L.Callback):
    """Callback that measures the times of the micro-steps."""

    def __init__(self, cuda: bool) -> None:
        self.timer = StepTimer(cuda)

    def on_train_batch_end(self, *_: Any) -> None:
        self.timer.record()


def micro_step_s(
    spec: RowSpec, model: Any, collator: CaptionCollator, captions: CaptionDataset, method: str, count: int
) -> float:
    """Return the median seconds of ``count`` micro-steps after eight of warm-up; ``method`` is 'loader' or 'step'."""
    kind = next(model.parameters()).device.type
    watch = Stopwatch(kind == "cuda")
    trainer = L.Trainer(
        accelerator="gpu" if kind == "cuda" else "cpu",
        devices=1,
        strategy=SingleDevice(torch.device(kind, 0)),
        precision=spec.settings.precision,
        accumulate_grad_batches=spec.settings.accumulate,
        max_epochs=100,
        max_steps=(WARM_UP + count) // spec.settings.accumulate,
        callbacks=[watch],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    in_step = method == "step"
    loader = raw_loader(spec, captions) if in_step else build_caption_loader(spec, captions, collator, None)
    trainer.fit(LabMethod(spec, model, collator if in_step else None), loader)
    seconds = median(watch.timer.intervals_s()[WARM_UP:])
    del trainer, loader
    gc.collect()
    return seconds


def raw_loader(spec: RowSpec, captions: Any) -> DataLoader[Any]:
    """Return a loader of unprepared images and captions, with the same number of workers."""
    batches = SeededBatchSampler(captions.texts, spec.settings.batch_size, spec.settings.seed, None)
    return DataLoader(captions, batch_sampler=batches, num_workers=spec.settings.workers, collate_fn=list)


def fast_processor(size: int) -> Any:
    """Return the lab's image processor (use_fast), or the plain one without torchvision."""
    if find_spec("torchvision") is None:
        return BlipImageProcessorPil(size={"height": size, "width": size})
    from transformers import BlipImageProcessor

    return BlipImageProcessor(size={"height": size, "width": size})


def figures(spec: RowSpec, rounds: Sequence[Seconds], processor: str) -> dict[str, Any]:
    """Return the results so far, with the median micro-steps of each round."""
    in_step, by_loader = (spec.settings.batch_size / median(seconds) for seconds in zip(*rounds, strict=True))
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "processor"
    return {
        "command": "python -m tests.benchmarks.training.image_loading",
        "row": f"{spec.suite}/{spec.row}",
        "size": spec.size,
        "card": spec.card,
        "device": name,
        "host_cpus": os.cpu_count(),
        "git_commit": git_commit(),
        "image_processor_in_step": processor,
        "samples_per_s_prepared_in_step": in_step,
        "samples_per_s_prepared_by_loader": by_loader,
        "ratio": by_loader / in_step,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", default="reduced-precision")
    parser.add_argument("--size", default="full" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--micro-steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--pixels", type=int, help="side of the images in pixels before they are prepared (default: that of the model)"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    spec = row_spec(SUITE, options.row, CARD, options.size, "verdict")
    model: Any = build_model(spec, torch.device(open_device(spec).kind))
    pixels = options.pixels or model.config.vision_config.image_size
    captions = open_captions(spec, pixels)
    by_loader = build_caption_collator(spec, model.config, captions.texts)
    processor = fast_processor(model.config.vision_config.image_size)
    in_step = replace(by_loader, image_processor=processor, dtype=torch.float32)
    rounds: list[Seconds] = []
    for number in range(1, options.rounds + 1):
        methods = (("step", in_step), ("loader", by_loader))
        first, second = (
            micro_step_s(spec, model, collator, captions, method, options.micro_steps) for method, collator in methods
        )
        rounds.append((first, second))
        results = figures(spec, rounds, type(processor).__name__) | {"image_side_pixels": pixels}
        print(
            f"round {number} of {options.rounds}: in the step {first:.4f} s, by the loader {second:.4f} s", flush=True
        )
        if options.out:
            write_atomically(options.out, json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
