"""Rows of the single-GPU LitGPT lab: LitGPT's own fine-tuning loop, of a checkpoint or of a random model.

``train`` does what ``main`` of litgpt.finetune.full and litgpt.finetune.lora (0.5.13) do up to ``fit``, in their
order, and then calls ``fit`` as it is. Validation, example texts and checkpoints are left out.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from bitsandbytes.nn import StableEmbedding
from lightning.fabric.plugins import Precision
from litgpt.args import EvalArgs, TrainArgs
from litgpt.finetune import full, lora
from litgpt.utils import instantiate_bnb_optimizer, load_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.data.texts import batches_per_epoch, build_text_loader, open_texts, padded
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import Schedule, schedule_of
from experiments.training.models.litgpt import build_litgpt, build_precision
from experiments.training.models.litgpt_checkpoint import WEIGHTS, litgpt_checkpoint
from experiments.training.models.optimizers import build_optimizer

Batch = dict[str, Any]


class Enough(Exception):
    """The probe has seen enough steps; leaves LitGPT's loop."""


class ProbedFabric(L.Fabric):
    """Fabric on one device whose backward passes the probe sees."""

    def __init__(self, probe: Probe, precision: Precision) -> None:
        super().__init__(accelerator="gpu" if probe.device.kind == "cuda" else "cpu", devices=1)
        self._probe = probe
        # Fabric's own argument refuses bitsandbytes on a processor.
        self._precision = self.strategy.precision = precision

    def backward(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self._probe.after_forward(tensor.detach() * self._probe.spec.settings.accumulate)
        self._probe.before_backward()
        super().backward(tensor, *args, **kwargs)
        self._probe.after_backward()


class ProbedLoader:
    """Batches for ``fit``: the probe sees each as it is taken, and asking for the next ends a micro-step.

    dataset has the lengths that ``fit`` looks for the longest text in.
    """

    def __init__(self, probe: Probe, batches: Any, lengths: Sequence[int]) -> None:
        self.dataset = [{"input_ids": range(length)} for length in lengths]
        self._probe, self._batches = probe, batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            self._probe.before_forward({key: batch[key] for key in ("input_ids", "labels")})
            yield batch
            if self._probe.after_batch():
                raise Enough


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Run the row; failures pass through as they are raised."""
    settings = spec.settings
    _refuse(settings)
    device = torch.device(probe.device.kind)
    fabric = ProbedFabric(probe, build_precision(settings, device))
    fabric.launch()
    fabric.seed_everything(settings.seed, verbose=False)
    module = fabric.setup_module(build_litgpt(spec, device))
    inner = _build_optimizer(settings, module)
    if settings.quantization:
        _stabilize_embedding(module)
    inner.register_step_pre_hook(lambda *_: probe.before_optimizer_step())
    optimizer: Any = fabric.setup_optimizers(inner)
    texts = open_texts(spec, module.config.vocab_size)
    probe.data_commit = texts.commit
    schedule = schedule_of(spec, batches_per_epoch(spec, texts))
    scheduler = _build_scheduler(settings, optimizer, schedule)
    if spec.weights == "pretrained":
        _load_weights(spec, probe, fabric, module)
    loader = build_text_loader(spec, texts, schedule.heaviest_at, collate)
    probe.watch(module, lambda: [inner])
    probe.start(schedule)
    batches = ProbedLoader(probe, fabric.setup_dataloaders(loader), texts.lengths)
    with suppress(Enough), TemporaryDirectory() as folder:
        _write_tokenizer(Path(folder))
        shared = _fit_arguments(settings, fabric, batches, Path(folder), out)
        if settings.lora:
            lora.fit(model=module, optimizer=optimizer, scheduler=scheduler, **shared)
        else:
            state = {"model": module, "optimizer": optimizer, "scheduler": scheduler, "iter_num": 0, "step_count": 0}
            full.fit(state=state, resume=False, **shared)


def collate(texts: list[torch.Tensor]) -> Batch:
    """A batch with LitGPT's keys: input_ids and labels (batch, tokens), token_counts (batch, 1), all int64."""
    batch: Batch = padded(texts)
    del batch["attention_mask"]
    counts = torch.tensor([[len(text)] for text in texts])
    return batch | {"token_counts": {"raw": counts, "raw_plus_prompt_template": counts}}


def _refuse(settings: Settings) -> None:
    if settings.world_size > 1 or settings.strategy != "auto":
        raise InputError(
            f"strategy {settings.strategy!r} on {settings.world_size} device(s) is not run by the litgpt engine;"
            " allowed: auto on one device"
        )
    if settings.quantization and settings.optimizer != "adamw":
        raise InputError(f"optimizer = {settings.optimizer!r}: LitGPT has another with 4-bit weights; allowed: adamw")


def _build_optimizer(settings: Settings, module: torch.nn.Module) -> torch.optim.Optimizer:
    """The row's optimizer; with 4-bit weights LitGPT takes bitsandbytes' paged AdamW instead."""
    if not settings.quantization:
        return build_optimizer(settings, module.parameters())
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "betas": settings.betas}
    given = {key: value for key, value in options.items() if value is not None}
    optimizer: torch.optim.Optimizer = instantiate_bnb_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": given}, module.parameters()
    )
    return optimizer


def _build_scheduler(settings: Settings, optimizer: torch.optim.Optimizer, schedule: Schedule) -> Any:
    """LitGPT's learning rate over the steps; InputError where it divides by zero."""
    warmup, steps = settings.warmup_steps, schedule.taught // settings.accumulate
    if warmup == 0 or warmup == steps <= schedule.most // settings.accumulate:
        reason = f"LitGPT's schedule divides by it and by what it leaves of the {steps} steps"
        raise InputError(f"warmup_steps = {warmup}: {reason}; allowed: 1 and more, {steps} excepted")
    return full.get_lr_scheduler(optimizer, warmup_steps=warmup, max_steps=steps)


def _load_weights(spec: RowSpec, probe: Probe, fabric: L.Fabric, module: torch.nn.Module) -> None:
    """Put the published weights in the place of the random ones; adapters and the norm of a stable embedding stay."""
    checkpoint = litgpt_checkpoint(spec.base_model)
    probe.weights_commit = checkpoint.commit
    load_checkpoint(fabric, module, checkpoint.folder / WEIGHTS, strict=not spec.settings.lora)


def _stabilize_embedding(module: Any) -> None:
    """Put bitsandbytes' embedding in place of the model's, as litgpt.finetune.lora.main does with 4-bit weights.

    The optimizer was made before and does not train it, while its gradients are computed and never cleared.
    """
    old = module.transformer.wte
    new = StableEmbedding(old.num_embeddings, old.embedding_dim)
    with torch.no_grad():
        new.weight.copy_(old.weight)
    module.transformer.wte = new.to(device=old.weight.device, dtype=old.weight.dtype)


def _write_tokenizer(folder: Path) -> None:
    """The one file of a checkpoint that ``fit`` opens; it would serve the example texts."""
    Tokenizer(WordLevel({"": 0}, unk_token="")).save(str(folder / "tokenizer.json"))


def _fit_arguments(
    settings: Settings, fabric: L.Fabric, batches: ProbedLoader, checkpoint: Path, out: Path
) -> dict[str, Any]:
    """What both kinds of ``fit`` take: the material's configuration, no validation, nothing saved.

    No max_steps: the schedule ends the training, after the probe has seen its last step.
    """
    return {
        "fabric": fabric,
        "train_dataloader": batches,
        "val_dataloader": DataLoader([]),  # type: ignore[arg-type]
        "devices": 1,
        "checkpoint_dir": checkpoint,
        "out_dir": out,
        "train": TrainArgs(
            save_interval=None,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=settings.batch_size,
            lr_warmup_steps=settings.warmup_steps,
            epochs=settings.max_epochs,
            max_seq_length=settings.max_length,
        ),
        "eval": EvalArgs(interval=sys.maxsize, initial_validation=False, final_validation=False),
        "data": None,
    }
