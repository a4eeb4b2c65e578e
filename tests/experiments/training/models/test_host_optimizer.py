"""AdamW with its state in host memory: the arithmetic of PyTorch's fused AdamW."""

from typing import Any

import pytest
import torch
from torch import nn

from experiments.suites.settings import Settings
from experiments.training.models import host_optimizer
from experiments.training.models.host_optimizer import HostAdamW
from experiments.training.models.optimizers import build_optimizer
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, OPT, shots, spec

LITGPT = {"engine": "litgpt", "model": LLAMA, "dataset": "constant", "max_length": 32, "warmup_steps": 1}


def trained(build, steps=5, accumulate=2):
    """Return the losses and the weights of a small training whose learning rate halves with each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4), nn.Linear(4, 4))
    model[3].requires_grad_(False)
    optimizer = build(model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    losses = []
    for _ in range(steps):
        for part in torch.randn(2 * accumulate, 8).chunk(accumulate):
            loss = model(part).square().mean()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return losses, list(model.parameters()), optimizer


def test_adamw_on_the_host_trains_bit_for_bit_like_the_fused_adamw():
    options: Any = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    losses, weights, usual = trained(lambda parameters: torch.optim.AdamW(parameters, fused=True, **options))
    found, found_weights, optimizer = trained(lambda parameters: HostAdamW(parameters, **options))
    assert found == losses
    assert len(set(losses)) == len(losses)
    assert all(map(torch.equal, found_weights, weights))
    assert len(optimizer.state) == len(usual.state) == 4
    for weight, state in zip(found_weights, usual.state.values(), strict=False):
        assert all(torch.equal(optimizer.state[weight][name], state[name]) for name in state)


def test_the_copy_of_a_parameter_begins_before_the_previous_parameter_is_updated(monkeypatch):
    events = []
    copy, update = host_optimizer._copy_to_host, HostAdamW._update
    monkeypatch.setattr(host_optimizer, "_copy_to_host", lambda one: events.append("copy") or copy(one))
    monkeypatch.setattr(HostAdamW, "_update", lambda *step: events.append("update") or update(*step))
    trained(lambda parameters: HostAdamW(parameters, lr=0.01), steps=1)
    assert events == ["copy", "copy", "update", "copy", "update", "copy", "update", "update"]


def test_the_method_step_runs_its_closure_with_gradients_and_returns_the_loss():
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(spec(optimizer="adamw_cpu", lr=0.5).settings, [weight])
    assert isinstance(optimizer, HostAdamW)

    def closure():
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert torch.all(weight < 0.6)


@pytest.mark.parametrize(
    "row",
    [{"accumulate": 2}, {"optimizer_in_backward": True}, {"engine": "hf_trainer"}, LITGPT],
    ids=str,
)
def test_a_row_of_each_engine_learns_as_with_adamw_on_the_gpu(row, tmp_path):
    usual = run_rank(spec(**{"model": OPT, **row}), tmp_path)
    found = run_rank(spec(**{"model": OPT, **row}, optimizer="adamw_cpu"), tmp_path)
    assert found.failure is None, found.failure
    assert found.losses == pytest.approx(usual.losses, rel=1e-5)
    states = [shots(one.memory, "after optimizer step", "optimizer_gib")[-1] for one in (found, usual)]
    assert states[0] == pytest.approx(states[1], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 2, "strategy": "ddp"}, "optimizer = adamw_cpu: needs world_size = 1, but it is 2"),
        ({"quantization": {"kind": "nf4"}}, "optimizer = adamw_cpu: needs quantization = None"),
    ],
)
def test_settings_that_exclude_adamw_on_the_host_are_rejected(changes, words):
    data = spec().settings.model_dump() | {"optimizer": "adamw_cpu", "global_batch_size": None}
    with pytest.raises(ValueError, match=words):
        Settings.model_validate(data | changes)
