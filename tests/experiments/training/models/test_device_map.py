"""Placement of a model across several GPUs, tested without GPUs, and the weights of its parts."""

from typing import Any

import pytest
import torch

from experiments.errors import InputError
from experiments.suites.models import models
from experiments.training.models import device_map
from experiments.training.models.weights import fill_randomly, find_device, load_pretrained, meta_model
from tests.support.results import in_memory
from tests.support.results.in_memory import EMULATING_GPU, GPU
from tests.support.training.tiny_rows import GIB, GPT_NEO, LLAMA, LORA, NF4, spec

CPU = torch.device("cpu")


def size_of(model, parts):
    return sum(2 * weights.numel() for part in parts for weights in model.get_submodule(part).parameters())


@pytest.mark.parametrize("name", [GPT_NEO, LLAMA])
def test_a_model_too_large_for_one_gpu_is_distributed_evenly(name):
    model = meta_model(models()[name], "full")
    whole = size_of(model, [""])
    parts = device_map.balanced_device_map(model, torch.bfloat16, dict.fromkeys(range(3), int(0.6 * whole)))
    shares = [size_of(model, [part for part, gpu in parts.items() if gpu == number]) for number in range(3)]
    assert sum(shares) >= whole
    assert max(shares) < 0.5 * whole
    assert min(shares) > 0.2 * whole


def test_weights_that_do_not_fit_are_reported_as_out_of_memory():
    model = meta_model(models()[GPT_NEO], "full")
    with pytest.raises(
        torch.OutOfMemoryError, match=r"^the weights do not fit into 1, 1 GiB on 2 GPUs; not placed: transformer.h"
    ):
        device_map.balanced_device_map(model, torch.bfloat16, {0: GIB, 1: GIB})


def test_a_tenth_of_the_memory_cap_or_of_the_free_memory_is_reserved_for_activations(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10 * GIB + number, 80 * GIB))
    assert device_map.weight_budget_bytes(1, EMULATING_GPU) == int(0.9 * EMULATING_GPU.cap_gib * GIB)
    assert device_map.weight_budget_bytes(1, GPU) == int(0.9 * (10 * GIB + 1))


def test_a_parameter_is_on_the_device_of_the_smallest_mapped_part_that_contains_it():
    parts = {"": 0, "transformer.h": 1, "transformer.h.3": 2}
    names = ("head.weight", "transformer.h.2.a", "transformer.h.3.a.b")
    assert [find_device(name, parts) for name in names] == [0, 1, 2]


def parts_of(model):
    return {name: "cpu" for name, _ in model.named_children()}


def test_each_part_of_the_model_gets_random_weights_and_tied_weights_stay_tied():
    model = meta_model(models()[GPT_NEO], "tiny")
    fill_randomly(model, torch.bfloat16, parts_of(model))
    assert {(weights.device, weights.dtype) for weights in model.parameters()} == {(CPU, torch.bfloat16)}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_published_weights_are_loaded_part_by_part(tmp_path):
    model: Any = meta_model(models()[GPT_NEO], "tiny")
    fill_randomly(model, torch.float32, {"": CPU})
    model.save_pretrained(tmp_path)
    published = models()[GPT_NEO].model_copy(update={"hub": str(tmp_path)})
    loaded: Any = load_pretrained(published, "tiny", torch.float32, None, parts_of(model))
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_model_distributed_over_two_devices_generates_text(monkeypatch):
    """Fake GPUs: every part is placed on the CPU."""
    budgets = {}
    monkeypatch.setattr(device_map, "weight_budget_bytes", lambda gpu, device: 100 + gpu)
    monkeypatch.setattr(
        device_map, "balanced_device_map", lambda model, dtype, limits: budgets.update(limits) or parts_of(model)
    )
    row = spec(engine="hf_trainer", model=GPT_NEO, task="generate", devices=2, max_length=16)
    model = device_map.build_across_gpus(row, EMULATING_GPU)
    assert budgets == {0: 100, 1: 101}
    assert model(torch.arange(8)[None]).logits.shape == (1, 8, 256)


def test_the_weights_of_a_tiny_model_on_a_cpu_are_assigned_to_both_gpus_of_its_row():
    row = spec(size="tiny", engine="hf_trainer", model="opt-30b", task="generate", devices=2)
    model = device_map.build_across_gpus(row, in_memory.CPU)
    parts = device_map.weight_bytes_by_gpu(model, 2)
    assert sum(parts) == sum(weights.nbytes for weights in model.parameters())
    assert 0 < max(parts) < 0.75 * sum(parts)


def test_a_model_with_4_bit_weights_on_several_gpus_is_rejected():
    row = spec(engine="hf_trainer", model=GPT_NEO, devices=2, task="generate", lora=LORA, quantization=NF4)
    with pytest.raises(
        InputError, match=r"^quantization: not supported for a model on several GPUs; allowed: with devices = 1"
    ):
        device_map.build_across_gpus(row, EMULATING_GPU)
