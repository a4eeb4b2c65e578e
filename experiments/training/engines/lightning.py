"""transformers' models inside Lightning's loop: BLIP-2 on captioned images, language models on texts."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.recipe import RowSpec
from experiments.training.batches import prepare_data
from experiments.training.data import start_workers_apart
from experiments.training.engines.strategies import build_strategy
from experiments.training.models import build_model
from experiments.training.optimizers import build_optimizer
from experiments.training.probe import Probe
from experiments.training.schedule import schedule_of

Batch = dict[str, torch.Tensor]


class Tuner(L.LightningModule):
    """The model and what a step of it is: the loss of one prepared batch."""

    def __init__(self, probe: Probe, model: torch.nn.Module) -> None:
        super().__init__()
        self.probe, self.model = probe, model

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        self.probe.after_forward(loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.probe.spec.settings, self.model.parameters())


class ProbeCallback(L.Callback):
    """Hands the points of Lightning's step to the probe, and ends the training when the probe has seen enough."""

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


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Run the row; failures pass through as they are raised."""
    L.seed_everything(spec.settings.seed, verbose=False)
    device, context = torch.device(probe.device.kind), start_workers_apart(spec)
    model: Any = build_model(spec, device)
    probe.weights_commit = getattr(model.config, "_commit_hash", None)
    batches, build = prepare_data(spec, model.config, context)
    schedule = schedule_of(spec, batches)
    trainer = _trainer(spec, probe, out)
    probe.watch(model, lambda: trainer.strategy.optimizers)
    probe.start(schedule)
    trainer.fit(Tuner(probe, model), build(schedule.heaviest_at))
    if spec.settings.save_model:
        probe.enter("save")
        model.save_pretrained(out / "model")


def _trainer(spec: RowSpec, probe: Probe, out: Path) -> L.Trainer:
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
        callbacks=[ProbeCallback(probe)],
        use_distributed_sampler=False,
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
