"""Weights on the device: published ones, or random ones of the same shapes and types, quantized where a row says so."""

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
from experiments.training.models.architecture import build_config, has_own_head, model_class

INIT_STD = 0.02


def build_random(
    facts: Model, size: Size, dtype: torch.dtype, quantization: Quantization | None, device: torch.device
) -> PreTrainedModel:
    """A model of that architecture with random weights, written straight on ``device``: the bytes of the real one.

    Built on the meta device first, so that no memory but the final weights' is ever taken.
    """
    model = meta_model(facts, size)
    if quantization:
        _quantize_layers(model, quantization)
    fill_randomly(model, dtype, {"": device})
    on_device: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return on_device


def meta_model(facts: Model, size: Size) -> PreTrainedModel:
    """The model without memory behind its parameters, its shared embeddings shared as in the published checkpoints."""
    config = build_config(facts, size)
    with init_empty_weights(include_buffers=False):
        model = model_class(config)(config)
    model.tie_weights()
    if has_own_head(facts):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight, device="meta"))
    return model


def fill_randomly(model: nn.Module, dtype: torch.dtype, places: Mapping[str, Any]) -> None:
    """Put random weights of type ``dtype`` in the place of each parameter, shared ones once.

    ``places`` has the device of each part of the model by its name, a part of '' standing for all the others.
    """
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                device = torch.device(place_of(f"{path}.{name}", places))
                made[id(parameter)] = _random_like(parameter, name, dtype, device)
            module.register_parameter(name, made[id(parameter)])


def place_of(name: str, places: Mapping[str, Any]) -> Any:
    """The device of a parameter: that of the smallest part that it belongs to."""
    while name and name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def load_pretrained(
    facts: Model,
    size: Size,
    dtype: torch.dtype,
    quantization: Quantization | None,
    places: torch.device | Mapping[str, Any],
) -> PreTrainedModel:
    """The published weights of a model (a name on the hub or a folder), on a device or by parts on several.

    Raises InputError when they cannot be had.
    """
    if not facts.hub:
        raise InputError("weights = 'pretrained': no published weights are known of this model; allowed: random")
    device_map = {"": str(places)} if isinstance(places, torch.device) else dict(places)
    options: dict[str, Any] = {"torch_dtype": dtype, "device_map": device_map}
    if quantization:
        options["quantization_config"] = quantization_config(quantization)
    found = fetch_weights(facts.hub)
    try:
        return model_class(build_config(facts, size)).from_pretrained(found.folder, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        problem = f"the weights of {facts.hub!r} cannot be loaded ({reason}); weights=random needs no download"
        raise InputError(problem) from None


def quantization_config(quantization: Quantization) -> BitsAndBytesConfig:
    """The recipe's quantization in the terms of transformers."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_use_double_quant=quantization.double_quantization,
    )


def _quantize_layers(model: PreTrainedModel, quantization: Quantization) -> None:
    """Put bitsandbytes' layers where transformers would put them when it loads 4-bit weights.

    Transformers 4 has to be told of the layers that stay as they are; 5 asks the model itself.
    """
    quantizer = AutoHfQuantizer.from_config(quantization_config(quantization))
    kept = model._keep_in_fp32_modules or []
    quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=kept)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer


def _random_like(parameter: nn.Parameter, name: str, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Random weights of a parameter's shape on ``device``: norms one, biases zero, the rest normal."""
    if type(parameter).__name__ == "Params4bit":
        values = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(std=INIT_STD)
        options = {key: value for key, value in parameter.__dict__.items() if key != "bnb_quantized"}
        quantized: nn.Parameter = type(parameter)(values, requires_grad=False, **options).to(device)  # type: ignore[assignment]
        return quantized
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    if values.dim() > 1:
        values.normal_(std=INIT_STD)
    else:
        values.fill_(0.0 if name.endswith("bias") else 1.0)
    return nn.Parameter(values)
