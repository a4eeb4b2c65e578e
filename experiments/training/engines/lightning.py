"""transformers' models inside Lightning's loop: BLIP-2 on captioned images, language models on texts."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.suites.row_spec import RowSpec
from experiments.training.data.captions import start_workers_apart
from experiments.training.data.loaders import prepare_data
from experiments.training.engines.trainer import Batch, build_trainer
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import schedule_of
from experiments.training.models import build_model
from experiments.training.models.optimizers import build_optimizer


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


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Run the row; failures pass through as they are raised."""
    L.seed_everything(spec.settings.seed, verbose=False)
    device, context = torch.device(probe.device.kind), start_workers_apart(spec)
    model: Any = build_model(spec, device)
    probe.weights_commit = getattr(model.config, "_commit_hash", None)
    data = prepare_data(spec, model.config, context)
    probe.data_commit = data.commit
    schedule = schedule_of(spec, data.batches)
    trainer = build_trainer(spec, probe, out)
    probe.watch(model, lambda: trainer.strategy.optimizers)
    probe.start(schedule)
    trainer.fit(Tuner(probe, model), data.build(schedule.heaviest_at))
    if spec.settings.save_model:
        probe.enter("save")
        model.save_pretrained(out / "model")
