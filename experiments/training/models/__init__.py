"""The models that are trained: pretrained weights, or random ones of the same shapes made on the device at once."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from experiments.errors import unknown
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Quantization
from experiments.training.models.weights import build_random, load_pretrained

DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}


def build_model(spec: RowSpec, device: torch.device) -> nn.Module:
    """The row's model on ``device``, quantized, with adapters and checkpointing as its settings say, ready to train."""
    settings, dtype = spec.settings, DTYPES[spec.settings.precision]
    build = load_pretrained if spec.weights == "pretrained" else build_random
    model = build(spec.base_model, spec.size, dtype, settings.quantization, device)
    model.config.use_cache = False
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable()
    trained: nn.Module = with_adapters(model, settings.lora, settings.quantization) if settings.lora else model
    return trained.train()


def with_adapters(model: PreTrainedModel, lora: Lora, quantization: Quantization | None) -> PeftModel:
    """``model`` frozen, with trainable low-rank adapters; a quantized one prepared as peft prescribes.

    Raises InputError when the model has no layer of one of the names.
    """
    _refuse_missing(lora, model)
    if quantization:
        model = prepare_model_for_kbit_training(model)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none")
    return get_peft_model(model, config)


def _refuse_missing(lora: Lora, model: PreTrainedModel) -> None:
    linear = {path.rpartition(".")[2] for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    layers = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    for name in () if isinstance(lora.targets, str) else lora.targets:
        if name.rpartition(".")[2] not in layers:
            raise unknown("layer for adapters", name, (*sorted(linear), "all-linear"))
