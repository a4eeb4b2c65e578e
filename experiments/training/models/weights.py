"""Load published weights, or create random ones of the same shapes and types, optionally quantized."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from experiments.errors import InputError
from experiments.suites.choices import Size
from experiments.suites.models import Model
from experiments.suites.settings import Quantization
from experiments.training.data.hub import fetch_weights
from experiments.training.models.architecture import build_config, has_untied_output_head, model_class

INIT_STD = 0.02
"""Standard deviation of random weights."""


def build_random(
    base_model: Model, size: Size, dtype: torch.dtype, quantization: Quantization | None, device: torch.device
) -> PreTrainedModel:
    """Return the model with random weights that are created directly on ``device``.

    The model is first built on the meta device, so that only the final weights need memory.
    """
    model = meta_model(base_model, size)
    if quantization:
        _quantize_layers(model, quantization)
    fill_randomly(model, dtype, {"": device})
    on_device: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return on_device


def meta_model(base_model: Model, size: Size) -> PreTrainedModel:
    """Return the model on the meta device, with embeddings tied as in the published checkpoints."""
    config = build_config(base_model, size)
    with init_empty_weights(include_buffers=False):
        model = model_class(config)(config)
    model.tie_weights()
    if has_untied_output_head(base_model):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight, device="meta"))
    return model


def fill_randomly(model: nn.Module, dtype: torch.dtype, device_map: Mapping[str, Any]) -> None:
    """Replace each parameter by random weights of type ``dtype``; shared parameters stay shared.

    device_map: the device of each part of the model, by name of the part; the name '' stands for all other parts.
    """
    created: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in created:
                device = torch.device(find_device(f"{path}.{name}", device_map))
                created[id(parameter)] = _random_like(parameter, name, dtype, device)
            module.register_parameter(name, created[id(parameter)])


def find_device(name: str, device_map: Mapping[str, Any]) -> Any:
    """Return the device of a parameter: the device of the smallest part in ``device_map`` that contains it."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


def load_pretrained(
    base_model: Model,
    size: Size,
    dtype: torch.dtype,
    quantization: Quantization | None,
    placement: torch.device | Mapping[str, Any],
) -> PreTrainedModel:
    """Return the model with its published weights, from the hub or a folder.

    placement: the device of the model, or the device of each part by name. Raises InputError if the weights cannot be
    loaded.
    """
    if not base_model.hub:
        raise InputError("weights = 'pretrained': this model has no known published weights; allowed: random")
    device_map = {"": str(placement)} if isinstance(placement, torch.device) else dict(placement)
    options: dict[str, Any] = {"torch_dtype": dtype, "device_map": device_map}
    if quantization:
        options["quantization_config"] = quantization_config(quantization)
    source = fetch_weights(base_model.hub)
    try:
        return model_class(build_config(base_model, size)).from_pretrained(source.folder, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        problem = f"the weights of {base_model.hub!r} cannot be loaded ({reason}); weights=random needs no download"
        raise InputError(problem) from None


def quantization_config(quantization: Quantization) -> BitsAndBytesConfig:
    """Return transformers' configuration of the row's quantization."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_use_double_quant=quantization.double_quantization,
    )


def _quantize_layers(model: PreTrainedModel, quantization: Quantization) -> None:
    """Replace layers by bitsandbytes layers, as transformers does when it loads 4-bit weights.

    Transformers 4 needs the list of layers that stay in 32 bits; Transformers 5 reads it from the model.
    """
    quantizer = AutoHfQuantizer.from_config(quantization_config(quantization))
    unquantized = model._keep_in_fp32_modules or []
    quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=unquantized)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer


def _random_like(parameter: nn.Parameter, name: str, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Return random weights of the parameter's shape on ``device``: ones for norms, zeros for biases, else normal."""
    if type(parameter).__name__ == "Params4bit":
        values = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(std=INIT_STD)
        options = {key: value for key, value in parameter.__dict__.items() if key != "bnb_quantized"}
        quantized: nn.Parameter = type(parameter)(values, requires_grad=False, **options).to(device)  # type: ignore[assignment]
        return quantized
    if type(parameter).__name__ == "Int8Params":
        wide = torch.empty(parameter.shape, dtype=torch.float16, device="cpu")
        integers: nn.Parameter = type(parameter)(wide, requires_grad=False, has_fp16_weights=False).to(device)  # type: ignore[call-arg,assignment]
        return integers
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    if values.dim() > 1:
        values.normal_(std=INIT_STD)
    else:
        values.fill_(0.0 if name.endswith("bias") else 1.0)
    return nn.Parameter(values)
