"""The models that are trained: pretrained weights, or random ones of the same shapes made on the device at once."""

from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.initialization import no_init_weights
from transformers.quantizers import AutoHfQuantizer

from experiments.errors import InputError
from experiments.recipe import Lora, Model, Quantization, RowSpec, Size, models

VISION: dict[Size, dict[str, Any]] = {
    "full": {
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
    },
    "tiny": {
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
QFORMER: dict[Size, dict[str, Any]] = {
    "full": {},
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "encoder_hidden_size": 32,
    },
}
QUERY_TOKENS = {"full": 32, "tiny": 4}
TINY_VOCABULARY = 256
TINY_TEXT: dict[str, dict[str, Any]] = {
    "blip2-opt": {
        "hidden_size": 32,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "vocab_size": TINY_VOCABULARY,
        "max_position_embeddings": 128,
    },
    "blip2-t5": {
        "d_model": 32,
        "d_ff": 96,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": TINY_VOCABULARY,
    },
}
IMAGE_TOKENS = {"blip2-opt": {"full": 50265, "tiny": 255}, "blip2-t5": {"full": 32100, "tiny": 255}}
DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}
INIT_STD = 0.02


def build_model(spec: RowSpec, device: torch.device) -> nn.Module:
    """The row's model on ``device``, quantized, with adapters and checkpointing as its settings say, ready to train."""
    settings, facts = spec.settings, models()[spec.settings.model]
    dtype = DTYPES[settings.precision]
    if spec.weights == "pretrained":
        model = load_pretrained(facts.hub, dtype, settings.quantization, device)
    else:
        model = build_random(build_config(facts, spec.size), dtype, settings.quantization, device)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable()
    trained: nn.Module = with_adapters(model, settings.lora, settings.quantization) if settings.lora else model
    return trained.train()


def build_config(facts: Model, size: Size) -> Blip2Config:
    """The architecture of a BLIP-2 model of models.yaml, or its miniature: the same parts, few and narrow."""
    if facts.family not in TINY_TEXT:
        raise InputError(f"the family {facts.family!r} is not built here; allowed: {', '.join(TINY_TEXT)}")
    text = facts.architecture | (TINY_TEXT[facts.family] if size == "tiny" else {})
    text_config = OPTConfig(**text) if facts.family == "blip2-opt" else T5Config(**text)
    return Blip2Config(
        vision_config=Blip2VisionConfig(**VISION[size]).to_dict(),
        qformer_config=Blip2QFormerConfig(**QFORMER[size]).to_dict(),
        text_config=text_config.to_dict(),
        num_query_tokens=QUERY_TOKENS[size],
        image_token_index=IMAGE_TOKENS[facts.family][size],
        tie_word_embeddings=facts.family == "blip2-opt",  # type: ignore[call-arg]
    )


def build_random(
    config: Blip2Config, dtype: torch.dtype, quantization: Quantization | None, device: torch.device
) -> PreTrainedModel:
    """A model of that architecture with random weights, written straight on ``device``: the bytes of the real one.

    Built on the meta device first, so that no memory but the final weights' is ever taken.
    """
    model = meta_model(config)
    if quantization:
        _quantize_layers(model, quantization)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                made[id(parameter)] = _random_like(parameter, name, dtype, device)
            module.register_parameter(name, made[id(parameter)])
    on_device: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return on_device


def meta_model(config: Blip2Config) -> PreTrainedModel:
    """The model without memory behind its parameters, its shared embeddings shared as in the published checkpoints."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = Blip2ForConditionalGeneration(config)
    model.tie_weights()
    if not config.tie_word_embeddings:
        head = model.language_model.lm_head
        head.weight = nn.Parameter(torch.empty_like(head.weight, device="meta"))
    return model


def load_pretrained(
    hub: str, dtype: torch.dtype, quantization: Quantization | None, device: torch.device
) -> PreTrainedModel:
    """The published weights of ``hub`` (a name on the hub or a folder); InputError when they cannot be had."""
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}}
    if quantization:
        options["quantization_config"] = quantization_config(quantization)
    try:
        return Blip2ForConditionalGeneration.from_pretrained(hub, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        problem = f"the weights of {hub!r} cannot be loaded ({reason}); weights=random needs no download"
        raise InputError(problem) from None


def quantization_config(quantization: Quantization) -> BitsAndBytesConfig:
    """The recipe's quantization in the terms of transformers."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype),
        bnb_4bit_use_double_quant=quantization.double_quantization,
    )


def with_adapters(model: PreTrainedModel, lora: Lora, quantization: Quantization | None) -> PeftModel:
    """``model`` frozen, with trainable low-rank adapters; a quantized one prepared as peft prescribes."""
    if quantization:
        model = prepare_model_for_kbit_training(model)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none")
    return get_peft_model(model, config)


def _quantize_layers(model: PreTrainedModel, quantization: Quantization) -> None:
    """Put bitsandbytes' layers where transformers would put them when it loads 4-bit weights."""
    quantizer = AutoHfQuantizer.from_config(quantization_config(quantization))
    quantizer.preprocess_model(model=model, device_map=None)
    quantizer.postprocess_model(model)


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
