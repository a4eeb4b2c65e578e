"""The lightning engine trains models of transformers in Lightning's Trainer: BLIP-2 and language models."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.suites.row_spec import RowSpec
from experiments.training.data.captions import loader_worker_context
from experiments.training.data.collate import Batch
from experiments.training.data.loaders import prepare_data
from experiments.training.engines.trainer import build_trainer
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import build_schedule
from experiments.training.models.build import build_model
from experiments.training.models.optimizers import build_optimizer


class TransformersModule(L.LightningModule):
    """LightningModule whose training step is the model's loss for one batch."""

    def __init__(self, probe: Probe, model: torch.nn.Module) -> None:
        super().__init__()
        self.probe, self.model = probe, model

    @property
    def module(self) -> torch.nn.Module:
        """The trained model, by the attribute ``module``, as wrappers such as FSDP name the model that they contain."""
        return self.model

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        self.probe.after_forward(loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.probe.spec.settings, self.model.parameters())


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Train the row's model, and save it if the settings say so. Errors of the training are not caught."""
    L.seed_everything(spec.settings.seed, verbose=False)
    device, context = torch.device(probe.device.kind), loader_worker_context(spec)
    model: Any = build_model(spec, device)
    probe.weights_commit = getattr(model.config, "_commit_hash", None)
    data = prepare_data(spec, model.config, context)
    probe.data_commit = data.commit
    schedule = build_schedule(spec, data.batches_per_epoch)
    trainer = build_trainer(spec, probe, out)
    probe.set_model(model, lambda: trainer.strategy.optimizers)
    probe.start(schedule)
    trainer.fit(TransformersModule(probe, model), data.build_loader(schedule.longest_batch_index))
    if spec.settings.save_model:
        probe.enter_phase("save")
        model.save_pretrained(out / "model")
