"""The litgpt_trainer engine trains LitGPT's models in Lightning's Trainer (rows of the multi-GPU LitGPT lab)."""

from pathlib import Path

import lightning as L
import torch
from litgpt.utils import chunked_cross_entropy

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.training.data.collate import Batch
from experiments.training.data.litgpt_checkpoint import WEIGHTS_FILE, litgpt_checkpoint
from experiments.training.data.texts import (
    batches_per_epoch,
    build_text_loader,
    open_texts,
    pack_texts,
    pad_texts,
)
from experiments.training.engines.trainer import build_trainer
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import build_schedule
from experiments.training.models.chunked_loss import ChunkedCrossEntropy
from experiments.training.models.litgpt import build_litgpt
from experiments.training.models.optimizers import build_optimizer
from experiments.training.models.packing import PackedModel


class LitgptModule(L.LightningModule):
    """LightningModule whose training step returns the cross entropy of the next tokens, computed in chunks."""

    def __init__(self, probe: Probe, model: torch.nn.Module) -> None:
        super().__init__()
        self.probe, self.model = probe, model
        self.compute_loss = ChunkedCrossEntropy(model) if probe.spec.settings.chunked_loss else chunked_cross_entropy

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        if isinstance(self.model, PackedModel):
            self.model.set_texts(batch)
        logits = self.model(batch["input_ids"])
        loss = self.compute_loss(logits[..., :-1, :], batch["labels"][..., 1:])
        self.probe.after_forward(loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer for the parameters, which the strategy has already sharded."""
        return build_optimizer(self.probe.spec.settings, self.parameters())


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Train the row's model. Raises InputError for quantization. Errors of the training are not caught."""
    if spec.settings.quantization:
        raise InputError("quantization is not supported by the litgpt_trainer engine; allowed: the engine litgpt")
    L.seed_everything(spec.settings.seed, verbose=False)
    trainer = build_trainer(spec, probe, out)
    model = build_litgpt(spec, torch.device(probe.device.kind))
    if spec.weights == "pretrained":
        checkpoint = litgpt_checkpoint(spec.base_model)
        probe.weights_commit = checkpoint.commit
        weights = torch.load(checkpoint.folder / WEIGHTS_FILE, mmap=True, weights_only=True)
        model.load_state_dict(weights, strict=not spec.settings.lora)
    texts = open_texts(spec, model.config.vocab_size)
    probe.data_commit = texts.commit
    schedule = build_schedule(spec, batches_per_epoch(spec, texts))
    probe.set_model(model, lambda: trainer.strategy.optimizers)
    probe.start(schedule)
    collate = pack_texts if spec.settings.packing else pad_texts
    trainer.fit(LitgptModule(probe, model), build_text_loader(spec, texts, schedule.longest_batch_index, collate))
