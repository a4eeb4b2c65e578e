"""LitGPT's models, made straight on the device as its own scripts make them: random, or to load a checkpoint into."""

from typing import Any

import torch
from lightning.fabric.plugins import BitsandbytesPrecision, HalfPrecision, MixedPrecision, Precision
from litgpt import lora
from litgpt.model import GPT, Config

from experiments.errors import InputError, unknown
from experiments.suites.models import models
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Settings

TARGETS = ("query", "key", "value", "projection", "mlp", "head")
# Wide enough that adapters of the rows' ranks are small beside the layers that carry them.
TINY: dict[str, Any] = {"n_layer": 2, "n_embd": 256, "n_head": 8, "intermediate_size": 704, "vocab_size": 256}
DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16}


def build_litgpt(spec: RowSpec, device: torch.device) -> GPT:
    """The row's model on ``device``, with its adapters and 4-bit weights, randomly initialized, ready to train.

    Weights are float32, or bfloat16 for the precision bf16-true. A 4-bit layer is quantized when it is made on a GPU,
    and when the model is moved to its device on a processor.
    """
    config = build_config(spec)
    with device, build_precision(spec.settings, device).module_init_context():
        model = lora.GPT(config) if isinstance(config, lora.Config) else GPT(config)
    if spec.settings.lora:
        lora.mark_only_lora_as_trainable(model)
    return model.train()


def build_config(spec: RowSpec) -> Config:
    """LitGPT's configuration of the row's model, or of its miniature; InputError for what LitGPT does not build."""
    settings = spec.settings
    facts = spec.base_model
    if facts.litgpt is None:
        raise unknown("model", settings.model, [name for name, one in models().items() if one.litgpt], "LitGPT")
    _refuse(spec)
    changes = TINY if spec.size == "tiny" else {}
    adapters = _adapters(settings.lora) if settings.lora else {}
    try:
        return (lora.Config if adapters else Config).from_name(facts.litgpt, **changes, **adapters)
    except ValueError as error:
        raise InputError(f"model {settings.model!r}: {error}; allowed: the names in litgpt.config") from None


def build_precision(settings: Settings, device: torch.device) -> Precision:
    """Lightning's plugin for the row's precision; with 4-bit weights the one that swaps every linear layer.

    Source: litgpt.finetune.lora.setup of 0.5.13.
    """
    quantization = settings.quantization
    if quantization:
        mode: Any = f"{quantization.kind}-dq" if quantization.double_quantization else quantization.kind
        return BitsandbytesPrecision(mode, DTYPES[settings.precision])
    if settings.precision == "bf16-mixed":
        return MixedPrecision("bf16-mixed", device.type)
    return HalfPrecision("bf16-true") if settings.precision == "bf16-true" else Precision()


def _adapters(settings: Lora) -> dict[str, Any]:
    """The recipe's adapters in LitGPT's terms: lora_query=True and so on."""
    targets = TARGETS if settings.targets == "all-linear" else settings.targets
    for target in targets:
        if target not in TARGETS:
            raise unknown("target", target, TARGETS, "LitGPT's LoRA")
    sizes = {"lora_r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    return sizes | {f"lora_{target}": True for target in targets}


def _refuse(spec: RowSpec) -> None:
    settings = spec.settings
    refused = {
        "weights = 'pretrained': a miniature has none; allowed: random": (
            spec.weights == "pretrained" and spec.size == "tiny"
        ),
        "activation_checkpointing = True: LitGPT has none on one device; allowed: False": (
            settings.activation_checkpointing
        ),
        "save_model = True: the LitGPT engines do not save; allowed: False": settings.save_model,
        "quantization: LitGPT quantizes under lora alone; allowed: with lora": (
            settings.quantization and not settings.lora
        ),
        f"precision = {settings.precision!r}: LitGPT has no 4-bit weights there; allowed: {', '.join(DTYPES)}": (
            settings.quantization and settings.precision not in DTYPES
        ),
    }
    for reason, holds in refused.items():
        if holds:
            raise InputError(reason)
