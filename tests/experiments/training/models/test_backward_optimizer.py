"""An optimizer that steps in the backward pass: the same training, bit for bit, with one gradient at a time."""

import pytest
import torch
from torch import nn

from experiments.suites.settings import Settings
from experiments.training.models.optimizers import build_optimizer
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, OPT, shots, spec


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11, bias=False))
    model[3].weight = model[0].weight
    return model


def trained(in_backward, optimizer="adamw", steps=5, lr_factor=1.0):
    """Return the losses and the weights of a training of a small model whose head and embedding are tied."""
    model = small_model()
    row = spec(optimizer=optimizer, lr=0.01, optimizer_in_backward=in_backward)
    optimizer = build_optimizer(row.settings, model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, lr_factor)
    losses = []
    for step in range(steps):
        tokens = torch.arange(step, step + 10) % 11
        loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, list(model.parameters()), optimizer


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("lr_factor", [1.0, 0.5])
def test_optimizer_steps_in_the_backward_pass_train_bit_for_bit_like_the_plain_optimizer(optimizer, lr_factor):
    losses, weights, _ = trained(False, optimizer, lr_factor=lr_factor)
    losses_in_backward, weights_in_backward, _ = trained(True, optimizer, lr_factor=lr_factor)
    assert losses_in_backward == losses
    assert losses[0] != losses[-1]
    assert all(map(torch.equal, weights_in_backward, weights))


def test_a_gradient_is_freed_before_the_next_parameter_is_updated():
    model = small_model()
    optimizer = build_optimizer(spec(optimizer_in_backward=True).settings, model.parameters())
    alive = []
    for parameter in model.parameters():
        parameter.register_hook(lambda _: alive.append(sum(one.grad is not None for one in model.parameters())))
    tokens = torch.arange(10)
    nn.functional.cross_entropy(model(tokens), tokens).backward()
    assert alive == [0, 0, 0]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(optimizer.state) == 3


def test_an_optimizer_that_steps_in_the_backward_pass_has_the_state_of_the_plain_optimizer():
    _, weights, optimizer = trained(True)
    _, _, usual = trained(False)
    assert {name for state in optimizer.state.values() for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(
        torch.equal(optimizer.state[weight]["exp_avg"], state["exp_avg"])
        for weight, state in zip(weights, usual.state.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 2}, "needs accumulate = 1, but it is 2"),
        ({"devices": 2, "strategy": "ddp"}, "needs world_size = 1, but it is 2"),
        ({"optimizer": "deepspeed_cpu"}, "needs optimizer = adamw, adamw_cpu, sgd, adam_8bit, but it is deepspeed_cpu"),
        ({"engine": "hf_trainer"}, "needs engine = lightning, litgpt, litgpt_trainer, but it is hf_trainer"),
    ],
)
def test_settings_that_need_all_gradients_at_once_are_rejected(changes, words):
    data = spec().settings.model_dump() | {"optimizer_in_backward": True, "global_batch_size": None}
    with pytest.raises(ValueError, match=words):
        Settings.model_validate(data | changes)


LITGPT = {"engine": "litgpt", "model": LLAMA, "dataset": "constant", "max_length": 32, "warmup_steps": 1}


@pytest.mark.parametrize(
    "row", [{"model": OPT}, LITGPT, LITGPT | {"engine": "litgpt_trainer", "warmup_steps": 0}], ids=str
)
def test_a_row_of_each_engine_has_the_same_losses_and_never_all_gradients_at_once(row, tmp_path):
    usual = run_rank(spec(**row), tmp_path)
    in_backward = run_rank(spec(**row, optimizer_in_backward=True), tmp_path)
    assert in_backward.losses == usual.losses
    assert len(usual.losses) == 6
    assert max(shots(usual.memory, "after backward", "grads_gib")) > 0
    assert max(shots(in_backward.memory, "after backward", "grads_gib")) == 0
    states = [shots(one.memory, "after optimizer step", "optimizer_gib") for one in (in_backward, usual)]
    assert states[0] == states[1]
    assert states[0][-1] > 0
    phases = "load", "forward", "backward", "optimizer step"
    assert tuple(in_backward.memory.peak_by_phase_gib) == phases
