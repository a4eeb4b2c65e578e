"""Activations in host memory: the same training, bit for bit, and which tensors move."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu

from experiments.suites.settings import Settings
from experiments.training.models import activation_offload
from experiments.training.models.activation_offload import offload_activations
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, OPT, spec

LITGPT = {"engine": "litgpt", "model": LLAMA, "dataset": "constant", "max_length": 32, "warmup_steps": 1}
LITGPT_TRAINER = LITGPT | {"engine": "litgpt_trainer", "warmup_steps": 0}
TRAINER = {"engine": "hf_trainer", "model": OPT}


@pytest.fixture
def offloaded(monkeypatch):
    """Return the list of tensors that are moved to the host, however small they are, and back."""
    moved: list[torch.Tensor] = []

    def recording_save_on_cpu(pin_memory):
        assert pin_memory
        hooks = save_on_cpu(pin_memory)
        pack = hooks.pack_hook
        hooks.pack_hook = lambda tensor: moved.append(tensor) or pack(tensor)
        return hooks

    monkeypatch.setattr(activation_offload, "save_on_cpu", recording_save_on_cpu)
    monkeypatch.setattr(activation_offload, "SMALLEST_OFFLOADED_BYTES", 1)
    return moved


def model_and_input():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), torch.randn(16, 64)


def test_gradients_with_offloaded_activations_are_the_same_bit_for_bit(offloaded):
    gradients = []
    for offloads in (False, True):
        model, inputs = model_and_input()
        if offloads:
            offload_activations(model)
        model(inputs).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))
    assert len(offloaded) == 3  # the inputs of the layers, and the output of tanh


def test_weights_small_tensors_and_expanded_views_are_not_offloaded(offloaded, monkeypatch):
    model, inputs = model_and_input()
    offload_activations(model)
    row = torch.randn(1, 64)
    model(row.expand(16, 64))
    pointers = {tensor.data_ptr() for tensor in offloaded}
    assert not pointers & {weight.data_ptr() for weight in model.parameters()}
    assert row.data_ptr() not in pointers
    offloaded.clear()
    monkeypatch.setattr(activation_offload, "SMALLEST_OFFLOADED_BYTES", 16 * 64 * 4 + 1)
    model(inputs)
    assert offloaded == []


@pytest.mark.parametrize(
    "row",
    [{"model": OPT}, {"model": OPT, "activation_checkpointing": True}, TRAINER, LITGPT, LITGPT_TRAINER],
    ids=str,
)
def test_a_row_of_each_engine_has_the_same_losses_as_without_activation_offload(row, offloaded, tmp_path):
    usual = run_rank(spec(**row), tmp_path)
    assert offloaded == []
    found = run_rank(spec(**row, activation_offload=True), tmp_path)
    assert found.failure is None, found.failure
    assert found.losses == usual.losses
    assert len(usual.losses) > 1
    assert offloaded


def test_activation_offload_is_rejected_for_rows_on_several_gpus():
    data = spec().settings.model_dump() | {"activation_offload": True, "global_batch_size": None}
    with pytest.raises(ValueError, match="activation_offload = True: needs world_size = 1, but it is 2"):
        Settings.model_validate(data | {"devices": 2, "strategy": "ddp"})
