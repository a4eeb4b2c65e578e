"""The litgpt engine runs LitGPT's fine-tuning loop on a checkpoint or a random model (single-GPU LitGPT lab).

``train`` performs the same steps, in the same order, as ``main`` of litgpt.finetune.full and litgpt.finetune.lora
(0.5.13) before ``fit``, and then calls the unchanged ``fit``. The loop omits validation, example texts and checkpoints.
With the setting chunked_loss, ``fit`` calls another function for the loss.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import Precision
from litgpt.args import EvalArgs, TrainArgs
from litgpt.finetune import full, lora
from litgpt.model import GPT
from litgpt.utils import instantiate_bnb_optimizer, load_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.data.litgpt_checkpoint import WEIGHTS_FILE, litgpt_checkpoint
from experiments.training.data.texts import batches_per_epoch, build_text_loader, open_texts, pack_texts, pad_texts
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import Schedule, build_schedule
from experiments.training.models.chunked_loss import ChunkedCrossEntropy
from experiments.training.models.litgpt import build_litgpt, build_precision
from experiments.training.models.optimizers import build_optimizer
from experiments.training.models.packing import PackedModel
from provision.temporary import TemporaryFolder

LitgptBatch = dict[str, Any]
"""A batch with LitGPT's token counts, which are tensors in a separate dictionary."""


class TrainingDone(Exception):
    """Raised when the probe has measured enough steps; ends LitGPT's loop."""


class ProbedFabric(L.Fabric):
    """Fabric on one device that reports losses and backward passes to the probe."""

    def __init__(self, probe: Probe, precision: Precision) -> None:
        super().__init__(accelerator="gpu" if probe.device.kind == "cuda" else "cpu", devices=1)
        self._probe = probe
        # set after construction, because the constructor rejects the precision of bitsandbytes on a CPU
        self._precision = self.strategy.precision = precision

    def backward(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self._probe.after_forward(tensor.detach() * self._probe.spec.settings.accumulate)
        self._probe.before_backward()
        super().backward(tensor, *args, **kwargs)
        self._probe.after_backward()


class ProbedLoader:
    """Loader for ``fit`` that reports to the probe. Each batch ends the previous micro-step and begins a new one.

    dataset: an item for each text, with the length of the text, because ``fit`` searches the data set for the longest.
    """

    def __init__(self, probe: Probe, model: GPT, batches: Any, lengths: Sequence[int]) -> None:
        self.dataset = [{"input_ids": range(length)} for length in lengths]
        self._probe, self._model, self._batches = probe, model, batches

    def __iter__(self) -> Iterator[LitgptBatch]:
        for batch in self._batches:
            if isinstance(self._model, PackedModel):
                self._model.set_texts(batch)
            self._probe.before_forward({key: value for key, value in batch.items() if key != "token_counts"})
            yield batch
            if self._probe.after_batch():
                raise TrainingDone


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Train the row's model. Raises InputError for unsupported settings. Errors of the training are not caught."""
    settings = spec.settings
    _reject_unsupported(settings)
    device = torch.device(probe.device.kind)
    fabric = ProbedFabric(probe, build_precision(settings, device))
    fabric.launch()
    fabric.seed_everything(settings.seed, verbose=False)
    model = build_litgpt(spec, device)
    module = fabric.setup_module(model)
    plain_optimizer = _build_optimizer(settings, module)
    if settings.quantization:
        _stabilize_embedding(module)
    plain_optimizer.register_step_pre_hook(lambda *_: probe.before_optimizer_step())
    optimizer: Any = fabric.setup_optimizers(plain_optimizer)
    texts = open_texts(spec, module.config.vocab_size)
    probe.data_commit = texts.commit
    schedule = build_schedule(spec, batches_per_epoch(spec, texts))
    scheduler = _build_scheduler(settings, optimizer, schedule)
    if spec.weights == "pretrained":
        _load_weights(spec, probe, fabric, module)
    loader = build_text_loader(
        spec, texts, schedule.longest_batch_index, collate_packed if settings.packing else collate
    )
    probe.set_model(module, lambda: [plain_optimizer])
    probe.start(schedule)
    batches = ProbedLoader(probe, model, fabric.setup_dataloaders(loader), texts.lengths)
    with suppress(TrainingDone), _loss_context(settings, model, fabric), TemporaryFolder("tokenizer") as folder:
        _write_tokenizer(folder)
        arguments = _fit_arguments(settings, fabric, batches, folder, out)
        if settings.lora:
            lora.fit(model=module, optimizer=optimizer, scheduler=scheduler, **arguments)
        else:
            state = {"model": module, "optimizer": optimizer, "scheduler": scheduler, "iter_num": 0, "step_count": 0}
            full.fit(state=state, resume=False, **arguments)


def collate(texts: list[torch.Tensor]) -> LitgptBatch:
    """Return a batch with LitGPT's keys: input_ids, labels (batch, tokens) and token_counts (batch, 1), all int64."""
    batch: LitgptBatch = pad_texts(texts)
    del batch["attention_mask"]
    counts = torch.tensor([[len(text)] for text in texts])
    return batch | {"token_counts": {"raw": counts, "raw_plus_prompt_template": counts}}


def collate_packed(texts: list[torch.Tensor]) -> LitgptBatch:
    """Return a batch of ``pack_texts`` with LitGPT's token counts.

    The counts are NumPy arrays, which stay on the host. LitGPT reads the counts in each micro-step; reading tensors on
    the GPU would wait for the GPU.
    """
    counts = np.array([[len(text)] for text in texts])
    return pack_texts(texts) | {"token_counts": {"raw": counts, "raw_plus_prompt_template": counts}}


def _reject_unsupported(settings: Settings) -> None:
    if settings.world_size > 1 or settings.strategy != "auto":
        raise InputError(
            f"strategy {settings.strategy!r} on {settings.world_size} device(s) is not supported by the litgpt engine;"
            " allowed: auto on one device"
        )
    if settings.quantization and settings.optimizer != "adamw":
        raise InputError(
            f"optimizer = {settings.optimizer!r}: LitGPT uses its own optimizer for 4-bit weights; allowed: adamw"
        )


def _build_optimizer(settings: Settings, module: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the row's optimizer. With 4-bit weights, return the paged AdamW of bitsandbytes, as LitGPT does."""
    if not settings.quantization:
        return build_optimizer(settings, module.parameters())
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "betas": settings.betas}
    init_args = {key: value for key, value in options.items() if value is not None}
    optimizer: torch.optim.Optimizer = instantiate_bnb_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": init_args}, module.parameters()
    )
    return optimizer


def _build_scheduler(settings: Settings, optimizer: torch.optim.Optimizer, schedule: Schedule) -> Any:
    """Return LitGPT's scheduler of the learning rate. schedule: the row's number of micro-steps.

    Raises InputError for a warm-up that makes the scheduler divide by zero.
    """
    warmup, steps = settings.warmup_steps, schedule.total // settings.accumulate
    if warmup == 0 or warmup == steps <= schedule.last_micro_step // settings.accumulate:
        reason = f"LitGPT's schedule would divide by zero (by warmup_steps, and by {steps} - warmup_steps)"
        raise InputError(f"warmup_steps = {warmup}: {reason}; allowed: 1 or more, but not {steps}")
    return full.get_lr_scheduler(optimizer, warmup_steps=warmup, max_steps=steps)


def _loss_context(settings: Settings, model: GPT, fabric: ProbedFabric) -> AbstractContextManager[Any]:
    """Return the context for ``fit``. With the setting chunked_loss, ``fit`` computes its cross entropy in chunks."""
    if not settings.chunked_loss:
        return nullcontext()
    loss = ChunkedCrossEntropy(model, fabric.strategy.precision)
    return patch.object(lora if settings.lora else full, "chunked_cross_entropy", loss)


def _load_weights(spec: RowSpec, probe: Probe, fabric: L.Fabric, module: torch.nn.Module) -> None:
    """Replace the random weights by the published ones. Adapters and the norm of a StableEmbedding are kept."""
    checkpoint = litgpt_checkpoint(spec.base_model)
    probe.weights_commit = checkpoint.commit
    load_checkpoint(fabric, module, checkpoint.folder / WEIGHTS_FILE, strict=not spec.settings.lora)


def _stabilize_embedding(module: Any) -> None:
    """Replace the model's embedding by the one of bitsandbytes, as litgpt.finetune.lora.main does with 4-bit weights.

    The optimizer, which exists already, does not train the new embedding. Its gradients are computed and never cleared.
    """
    from bitsandbytes.nn import StableEmbedding  # the import opens GPUs

    old = module.transformer.wte
    new = StableEmbedding(old.num_embeddings, old.embedding_dim)
    with torch.no_grad():
        new.weight.copy_(old.weight)
    module.transformer.wte = new.to(device=old.weight.device, dtype=old.weight.dtype)


def _write_tokenizer(folder: Path) -> None:
    """Write an empty tokenizer, the only checkpoint file that ``fit`` opens (for the example texts)."""
    Tokenizer(WordLevel({"": 0}, unk_token="")).save(str(folder / "tokenizer.json"))


def _fit_arguments(
    settings: Settings, fabric: L.Fabric, batches: ProbedLoader, checkpoint: Path, out: Path
) -> dict[str, Any]:
    """Return the arguments that both ``fit`` functions have: the lab's configuration without validation and saving.

    max_steps is left out, because the probe's schedule ends the training.
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
