"""Build the model of a row from transformers: pretrained or random weights, quantization, LoRA adapters."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experiments.errors import unknown_name_error
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Quantization
from experiments.training.models.activation_offload import offload_activations
from experiments.training.models.chunked_loss import chunk_causal_loss
from experiments.training.models.compilation import compile_blocks
from experiments.training.models.selective_checkpointing import build_contexts
from experiments.training.models.weights import build_random, load_pretrained
from experiments.training.transformers_compat import checkpointed_layers

if TYPE_CHECKING:
    from peft import PeftModel

DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}


def build_model(spec: RowSpec, device: torch.device) -> nn.Module:
    """Return the row's model on ``device`` in training mode, with its weights, adapters and memory-saving changes."""
    settings, dtype = spec.settings, DTYPES[spec.settings.precision]
    build = load_pretrained if spec.weights == "pretrained" else build_random
    model = build(spec.base_model, spec.size, dtype, settings.quantization, device)
    model.config.use_cache = False
    if settings.activation_checkpointing:
        selective = settings.activation_checkpointing == "selective"
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": build_contexts} if selective else None
        )
    adapted: nn.Module = add_adapters(model, settings.lora, settings.quantization) if settings.lora else model
    if settings.chunked_loss:
        chunk_causal_loss(model)
    if settings.activation_offload:
        offload_activations(adapted)
    blocks = [one for one in adapted.modules() if isinstance(one, tuple(checkpointed_layers()))]
    compile_blocks(blocks, settings, device)
    return adapted.train()


def add_adapters(model: PreTrainedModel, lora: Lora, quantization: Quantization | None) -> "PeftModel":
    """Return ``model`` with frozen weights and trainable low-rank adapters.

    quantization: how the weights are stored; None: not quantized. A quantized model is prepared as peft requires.

    Raises InputError if a target names no layer of the model.
    """
    from peft import (
        LoraConfig,
        get_peft_model,
        prepare_model_for_kbit_training,
    )  # imports bitsandbytes, which opens GPUs

    _reject_missing_layers(lora, model)
    if quantization:
        model = prepare_model_for_kbit_training(model)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none")
    return get_peft_model(model, config)


def _reject_missing_layers(lora: Lora, model: PreTrainedModel) -> None:
    linear = {path.rpartition(".")[2] for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    layers = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    for name in () if isinstance(lora.targets, str) else lora.targets:
        if name.rpartition(".")[2] not in layers:
            raise unknown_name_error("layer for adapters", name, (*sorted(linear), "all-linear"))
