"""Build LitGPT's models with random weights directly on the device, as LitGPT's scripts do."""

from typing import Any

import torch
from lightning.fabric.plugins import BitsandbytesPrecision, HalfPrecision, MixedPrecision, Precision
from litgpt import lora
from litgpt.model import GPT, Config

from experiments.errors import InputError, unknown_name_error
from experiments.suites.models import models
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Settings
from experiments.training.models.activation_offload import offload_activations
from experiments.training.models.compilation import compile_blocks
from experiments.training.models.packing import PackedGPT, PackedLoraGPT

LORA_TARGETS = ("query", "key", "value", "projection", "mlp", "head")
# Wide enough that the rows' adapters are small compared with the layers.
TINY_SETTINGS: dict[str, Any] = {"n_layer": 2, "n_embd": 256, "n_head": 8, "intermediate_size": 704, "vocab_size": 256}
SIZE_KEYS = {
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "n_head": "num_attention_heads",
    "n_query_groups": "num_key_value_heads",
}
"""Keys of sizes in LitGPT's configuration, and the keys of the same sizes in config.json."""
DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16}


def build_litgpt(spec: RowSpec, device: torch.device) -> GPT:
    """Return the row's model on ``device`` in training mode, randomly initialized, with its adapters.

    Weights are float32, or bfloat16 for the precision bf16-true. On a GPU, 4-bit layers are quantized when they are
    created; on a CPU, when the model is moved to its device.
    """
    config = build_config(spec)
    with device, build_precision(spec.settings, device).module_init_context():
        model = _model_class(config, spec.settings.packing)(config)
    if spec.settings.lora:
        lora.mark_only_lora_as_trainable(model)
    if spec.settings.activation_offload:
        offload_activations(model)
    compile_blocks(model.transformer.h, spec.settings, device)
    return model.train()


def _model_class(config: Config, packing: bool) -> type[GPT]:
    if isinstance(config, lora.Config):
        return PackedLoraGPT if packing else lora.GPT
    return PackedGPT if packing else GPT


def build_config(spec: RowSpec) -> Config:
    """Return LitGPT's configuration of the row's model, with the sizes of its architecture, or of its tiny version.

    Raises InputError if LitGPT does not support the model or a setting.
    """
    settings = spec.settings
    base_model = spec.base_model
    if base_model.litgpt is None:
        raise unknown_name_error(
            "model", settings.model, [name for name, model in models().items() if model.litgpt], "LitGPT"
        )
    _reject_unsupported(spec)
    stated = {name: base_model.architecture[key] for name, key in SIZE_KEYS.items() if key in base_model.architecture}
    changes = TINY_SETTINGS if spec.size == "tiny" else stated
    adapters = _adapter_arguments(settings.lora) if settings.lora else {}
    try:
        config = (lora.Config if adapters else Config).from_name(base_model.litgpt, **changes, **adapters)
    except ValueError as error:
        raise InputError(f"model {settings.model!r}: {error}; allowed: the names in litgpt.config") from None
    if settings.chunked_loss and config.final_logit_softcapping is not None:
        raise InputError(
            f"chunked_loss: not possible for {base_model.litgpt}, which changes the logits after its output layer"
        )
    return config


def build_precision(settings: Settings, device: torch.device) -> Precision:
    """Return Lightning's plugin for the row's precision. With 4-bit weights the plugin replaces every linear layer.

    Source: litgpt.finetune.lora.setup in LitGPT 0.5.13.
    """
    quantization = settings.quantization
    if quantization:
        mode: Any = f"{quantization.kind}-dq" if quantization.double_quantization else quantization.kind
        return BitsandbytesPrecision(mode, DTYPES[settings.precision])
    if settings.precision == "bf16-mixed":
        return MixedPrecision("bf16-mixed", device.type)
    return HalfPrecision("bf16-true") if settings.precision == "bf16-true" else Precision()


def _adapter_arguments(adapters: Lora) -> dict[str, Any]:
    """Return the row's adapters as arguments of LitGPT's configuration: lora_query=True and so on."""
    targets = LORA_TARGETS if adapters.targets == "all-linear" else adapters.targets
    for target in targets:
        if target not in LORA_TARGETS:
            raise unknown_name_error("target", target, LORA_TARGETS, "LitGPT's LoRA")
    sizes = {"lora_r": adapters.r, "lora_alpha": adapters.alpha, "lora_dropout": adapters.dropout}
    return sizes | {f"lora_{target}": True for target in targets}


def _reject_unsupported(spec: RowSpec) -> None:
    settings = spec.settings
    problems = {
        "weights = 'pretrained': a tiny model has no pretrained weights; allowed: random": (
            spec.weights == "pretrained" and spec.size == "tiny"
        ),
        "activation_checkpointing = True: LitGPT does not support it on one device; allowed: False": (
            settings.activation_checkpointing
        ),
        "save_model = True: the LitGPT engines do not save; allowed: False": settings.save_model,
        "quantization: LitGPT quantizes only with lora; allowed: with lora": (
            settings.quantization and not settings.lora
        ),
        f"precision = {settings.precision!r}: not supported with 4-bit weights; allowed: {', '.join(DTYPES)}": (
            settings.quantization and settings.precision not in DTYPES
        ),
    }
    for problem, applies in problems.items():
        if applies:
            raise InputError(problem)
