from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from litgpt import lora
from litgpt.model import GPT, Config
from torch import nn

from experiments.errors import InputError
from experiments.prediction.predict import suite_row_spec
from experiments.suites.models import models
from experiments.suites.suite import suite_named
from experiments.training.models.litgpt import LORA_TARGETS, build_config, build_litgpt
from tests.support.training.tiny_rows import LORA, NF4
from tests.support.training.tiny_rows import spec as any_spec

CPU, META = torch.device("cpu"), torch.device("meta")
LITGPT = [name for name, model in models().items() if model.litgpt]
OWN = models()["open-llama-7b"].model_copy(update={"litgpt": "no-llama"})
ADAPTED = LORA | {"targets": list(LORA_TARGETS)}


def spec(**changes):
    return any_spec(**{"engine": "litgpt", "model": "tiny-llama-1.1b", "dataset": "constant"} | changes)


@pytest.mark.parametrize("name", LITGPT)
def test_a_full_size_model_has_as_many_parameters_as_published(name):
    model = build_litgpt(spec(model=name, size="full"), META)
    assert sum(one.numel() for one in model.parameters()) == models()[name].parameters


@pytest.mark.parametrize("name", LITGPT)
def test_a_tiny_model_has_the_same_parts_as_the_full_one(name):
    full, tiny = (build_config(spec(model=name, size=size)) for size in ("full", "tiny"))
    for part in ("mlp_class_name", "norm_class_name", "bias", "rotary_percentage", "block_size", "parallel_residual"):
        assert getattr(tiny, part) == getattr(full, part)
    assert (tiny.n_query_groups < tiny.n_head) == (full.n_query_groups < full.n_head)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)]
)
def test_weights_have_the_data_type_of_the_row_s_precision(precision, dtype):
    model = build_litgpt(spec(precision=precision), CPU)
    assert type(model) is GPT
    assert {one.dtype for one in model.parameters()} == {dtype}
    assert all(one.requires_grad for one in model.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_only_the_adapters_of_the_named_layers_are_trained():
    model = build_litgpt(spec(lora=ADAPTED | {"targets": ["query", "projection"]}), CPU)
    trained = {name.split(".", 3)[-1] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {f"attn.{layer}.lora_{side}" for layer in ("qkv", "proj") for side in "AB"}
    assert model.transformer.h[0].attn.qkv.enable_lora == (True, False, False)


def test_the_target_all_linear_stands_for_every_target_of_adapters():
    configs = [build_config(spec(lora=LORA | {"targets": targets})) for targets in ("all-linear", list(LORA_TARGETS))]
    assert configs[0] == configs[1]
    assert isinstance(configs[0], lora.Config)


def test_all_linear_layers_are_quantized_but_not_the_embedding():
    model = build_litgpt(spec(precision="bf16-true", lora=ADAPTED, quantization=NF4), CPU).to(CPU)
    linear: list[Any] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert {isinstance(module, Linear4bit) for module in linear} == {True}
    assert {module.weight.dtype for module in linear} == {torch.uint8}
    assert {module.weight.quant_type for module in linear} == {"nf4"}
    assert len(linear) == 1 + 5 * model.config.n_layer
    assert model.transformer.wte.weight.dtype == torch.bfloat16
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "blip2-opt-2.7b"}, r"^LitGPT: unknown model 'blip2-opt-2.7b'; allowed: tiny-llama-1.1b, open"),
        (
            {"model": "my-llama", "own": OWN},
            r"^model 'my-llama': 'no-llama' is not a supported config name; allowed: the names in litgpt.config$",
        ),
        ({"lora": LORA}, r"^LitGPT's LoRA: unknown target 'q_proj'; allowed: query, key, value"),
        (
            {"weights": "pretrained"},
            r"^weights = 'pretrained': a tiny model has no pretrained weights; allowed: random$",
        ),
        ({"activation_checkpointing": True}, r"^activation_checkpointing = True: .* allowed: False$"),
        ({"save_model": True}, r"^save_model = True: .* allowed: False$"),
        ({"quantization": NF4}, r"^quantization: .* allowed: with lora$"),
        (
            {"quantization": NF4, "lora": ADAPTED, "precision": "bf16-mixed"},
            r"^precision = 'bf16-mixed': .* allowed: 32-true, bf16-true$",
        ),
    ],
)
def test_models_that_litgpt_cannot_build_are_rejected(changes, message):
    with pytest.raises(InputError, match=message):
        build_config(spec(**changes))


@pytest.mark.parametrize("name", LITGPT)
def test_a_published_model_has_the_sizes_that_litgpt_states(name):
    assert build_config(spec(model=name, size="full")) == Config.from_name(models()[name].litgpt)


def test_a_model_of_a_suite_has_the_sizes_that_its_architecture_states():
    suite = suite_named("single_gpu_litgpt")
    config = build_config(suite_row_spec(suite, suite.row("7b-lora"), "h100_1g_12gb"))
    assert (config.n_layer, config.n_embd, config.intermediate_size, config.n_head) == (9, 2560, 6912, 20)
