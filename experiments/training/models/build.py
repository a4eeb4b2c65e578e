"""Build the model of a row from transformers: pretrained or random weights, quantization, LoRA adapters."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experiments.errors import InputError, unknown_name_error
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Quantization
from experiments.training.failures import first_line
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
    if settings.strategy == "fsdp":
        reject_adapters_of_experts(adapted)
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

    Raises InputError if a target names no layer of the model, or if peft does not support the adapters.
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
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        layers = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        settings = f"adapters of {layers} with dropout {lora.dropout:g}"
        raise InputError(f"{settings} are not supported: {first_line(error)}") from None


def reject_adapters_of_experts(model: nn.Module) -> None:
    """Raise InputError if adapters belong to a tensor that experts share, because FSDP1 cannot train such adapters.

    Sources: ``ParamWrapper._activate_lora`` of peft 0.21 reads the weights of the adapters outside of the forward pass
    of their layers, where FSDP1 has not gathered them. Where it has, ``torch.nn.utils.parametrize`` changes the
    parameter in place, and the parameter is a view of FSDP1's flat parameter. Both are errors on CPUs too.
    """
    if any(type(part).__name__ == "ParamWrapper" for part in model.modules()):
        raise InputError(
            "strategy fsdp: FSDP of version 1 cannot train adapters of experts that share a tensor; allowed: ddp,"
            " fsdp2, or adapters of other layers, such as q_proj,v_proj"
        )


def _reject_missing_layers(lora: Lora, model: PreTrainedModel) -> None:
    linear = {path.rpartition(".")[2] for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    layers = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    for name in () if isinstance(lora.targets, str) else lora.targets:
        if name.rpartition(".")[2] not in layers:
            raise unknown_name_error("layer for adapters", name, (*sorted(linear), "all-linear"))
