"""Build Lightning's Trainer with the row's settings and a callback that reports the steps to the probe."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.suites.row_spec import RowSpec
from experiments.training.data.collate import Batch
from experiments.training.engines.strategies import build_strategy
from experiments.training.measure.probe import Probe


class ProbeLightningCallback(L.Callback):
    """Callback that reports the points of a step to the probe, and ends the training when the probe requests it."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, index: int) -> None:
        self.probe.before_forward(batch)

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: torch.Tensor) -> None:
        self.probe.before_backward()

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.probe.after_backward()

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.probe.before_optimizer_step()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        trainer.should_stop = self.probe.after_batch()


def build_trainer(spec: RowSpec, probe: Probe, out: Path) -> L.Trainer:
    """Return the row's Trainer, without logging, validation and saving; each rank reads its own share of the data."""
    settings = spec.settings
    return L.Trainer(
        accelerator="gpu" if probe.device.kind == "cuda" else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=build_strategy(settings, probe.device),
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        callbacks=[ProbeLightningCallback(probe)],
        use_distributed_sampler=False,
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
