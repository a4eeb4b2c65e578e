"""The modules to which memory at the peak belongs."""

from collections import Counter

import pytest

GIB = 2**30
MODEL = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(1024, 4096, bias=False), nn.Linear(4096, 1024, bias=False)
    def forward(self, x):
        return self.down(self.up(x).relu())
"""
STEPS = """
optimizer = torch.optim.{optimizer}(model.parameters(), **{options})
batch = torch.zeros({batch}, 1024, device="cuda")
while True:
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
"""
WEIGHT = 4 * 1024 * 4096 / GIB
"""Memory of a weight, GiB."""
WIDE = 4 * 65536 * 4096 / GIB
"""Memory of the wide activation of a block with a large batch, GiB."""


@pytest.fixture
def sizes(traced):
    """Return a function that traces a training of ``model``, and returns the GiB by module, phase and category."""

    def sizes(model, batch=16, optimizer="AdamW", options=None):
        loop = STEPS.format(optimizer=optimizer, batch=batch, options=options or {})
        found = traced(MODEL + model + loop)
        assert sum(one.size_gib for one in found.modules) == pytest.approx(found.peak_gib, abs=0.001)
        shares: Counter[tuple[str, str, str]] = Counter()
        for one in found.modules:
            shares[one.module, one.phase, one.category] += one.size_gib
        return shares

    return sizes


def test_weights_gradients_and_optimizer_state_belong_to_the_module_that_has_the_weight(sizes):
    found = sizes("model = nn.Sequential(Block(), Block()).cuda()\n")
    for block in "01":
        for part in ("up", "down"):
            name = f"{block}.{part}"
            assert found[name, "load", "params"] == pytest.approx(WEIGHT, rel=0.01)
            assert found[name, "backward", "grads"] == pytest.approx(WEIGHT, rel=0.01)
            assert found[name, "optimizer step", "optimizer"] == pytest.approx(2 * WEIGHT, rel=0.01)


def test_temporary_memory_of_the_optimizer_is_not_an_activation(sizes):
    found = sizes("model = nn.Sequential(Block(), Block()).cuda()\n")
    assert found["", "optimizer step", "temporary"] == pytest.approx(4 * WEIGHT, rel=0.01)
    assert not any(category == "activations" for _, phase, category in found if phase == "optimizer step")


def test_memory_of_the_backward_pass_belongs_to_the_module_whose_gradients_are_computed(sizes):
    found = sizes("model = nn.Sequential(Block(), Block()).cuda()\n", batch=65536, optimizer="SGD")
    assert found["0", "forward", "activations"] == pytest.approx(WIDE, rel=0.01)
    assert found["1.down", "backward", "activations"] == pytest.approx(2 * WIDE, rel=0.01)  # behind and before the ReLU
    assert found["", "backward", "activations"] < 0.001


def test_a_weight_of_two_modules_belongs_to_the_first_one(sizes):
    found = sizes("model = nn.Sequential(Block(), Block()).cuda()\nmodel[1].up.weight = model[0].up.weight\n")
    assert ("1.up", "load", "params") not in found
    assert found["0.up", "backward", "grads"] == pytest.approx(WEIGHT, rel=0.01)


@pytest.mark.parametrize(("reentrant", "block"), [(False, "1"), (True, "0")])
def test_recomputed_activations_and_their_gradients_belong_to_modules(sizes, reentrant, block):
    found = sizes(
        f"""
class Checkpointed(Block):
    def forward(self, x):
        return checkpoint(super().forward, x.requires_grad_(), use_reentrant={reentrant})
model = nn.Sequential(Checkpointed(), Checkpointed()).cuda()
""",
        batch=65536,
        optimizer="SGD",
    )
    parts = {
        module: size for (module, phase, part), size in found.items() if (phase, part) == ("backward", "activations")
    }
    assert sum(size for module, size in parts.items() if module.startswith(block)) > 2.9 * WIDE
    assert parts[""] < 0.001


def test_buffers_and_wrapped_weights_belong_to_modules(sizes):
    found = sizes(
        "model = nn.Sequential(Block(), nn.BatchNorm1d(1024))\n"
        "model[1].register_buffer('table', torch.zeros(1024, 4096))\n"
        "model = model.cuda()\n"
    )
    assert found["1", "load", "buffers"] == pytest.approx(WEIGHT, rel=0.01)


def test_modules_can_be_called_by_transforms_of_torch_func_and_gradients_of_gradients(traced):
    found = traced(
        MODEL
        + """
from torch.func import functional_call, grad, vmap
model = nn.Sequential(Block(), nn.Tanh()).cuda()
weights = {name: one.detach() for name, one in model.named_parameters()}
batch = torch.zeros(4, 1024, device="cuda", requires_grad=True)
def loss(weights, sample):
    return functional_call(model, weights, (sample[None],)).sum()
each = vmap(grad(loss), in_dims=(None, 0))(weights, batch.detach())
optimizer = torch.optim.SGD(model.parameters())
while True:
    optimizer.zero_grad()
    (gradient,) = torch.autograd.grad(model(batch).sum(), batch, create_graph=True)
    gradient.square().sum().backward()
    optimizer.step()
"""
    )
    assert found.steps == 2
    assert found.peak_gib > 4 * 2 * WEIGHT
