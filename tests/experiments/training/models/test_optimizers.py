import sys
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from experiments.suites.settings import Settings
from experiments.training.models.optimizers import build_optimizer
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, spec


class FakeCpuAdam(torch.optim.SGD):
    """Fake of DeepSpeed's CPU Adam, which would need a compiler; stores its options."""

    def __init__(self, parameters, lr, **options):
        super().__init__(parameters, lr=lr)
        self.options = options


@pytest.fixture
def parameters():
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(4))]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("adam_8bit", bitsandbytes.optim.Adam8bit)],
)
def test_a_new_optimizer_has_the_trainable_parameters_and_no_state(name, kind, parameters):
    optimizer = build_optimizer(spec(optimizer=name, lr=0.25).settings, iter(parameters))
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]
    assert optimizer.param_groups[0]["params"] == [parameters[0], parameters[2]]
    assert not optimizer.state


def test_only_stated_options_are_passed_to_the_optimizer(parameters):
    stated = spec(optimizer="adamw", weight_decay=0.0, betas=(0.8, 0.7)).settings
    options = build_optimizer(stated, parameters).param_groups[0]
    assert (options["weight_decay"], tuple(options["betas"])) == (0.0, (0.8, 0.7))
    left_out = build_optimizer(spec(optimizer="adamw").settings, parameters)
    assert left_out.defaults == torch.optim.AdamW(parameters, lr=1e-4).defaults


def test_the_optimizer_for_offload_is_that_of_deepspeed(parameters, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", SimpleNamespace(DeepSpeedCPUAdam=FakeCpuAdam))
    optimizer = build_optimizer(spec(optimizer="deepspeed_cpu", weight_decay=0.5).settings, parameters)
    assert isinstance(optimizer, FakeCpuAdam)
    assert optimizer.options == {"weight_decay": 0.5}


TEXTS: dict[str, Any] = {"model": LLAMA, "dataset": "constant", "max_length": 16, "train_samples": None, "max_steps": 4}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("engine", ["lightning", "litgpt", "litgpt_trainer", "hf_trainer"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_a_fused_optimizer_trains_like_the_optimizer_without_fusion(
    monkeypatch, tmp_path, optimizer, engine, in_backward
):
    if in_backward and engine == "hf_trainer":
        pytest.skip("hf_trainer has no optimizer step in the backward pass")
    kernels = []
    for name in ("_fused_adamw_", "_fused_sgd_"):
        kernel = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *rest, kernel=kernel, **more: kernels.append(kernel(*rest, **more)))
    row = TEXTS | {"engine": engine, "optimizer": optimizer, "lr": 0.01, "optimizer_in_backward": in_backward}
    row["warmup_steps"] = int(engine == "litgpt")
    usual = run_rank(spec(**row), tmp_path)
    assert not kernels
    fused = run_rank(spec(**row, fused_optimizer=True), tmp_path)
    assert kernels
    assert fused.losses == pytest.approx(usual.losses, rel=1e-5)
    assert len(set(usual.losses)) >= 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "adam_8bit"}, "fused_optimizer = True: needs optimizer = adamw, sgd, but it is adam_8bit"),
        (
            {"optimizer": "deepspeed_cpu"},
            "fused_optimizer = True: needs optimizer = adamw, sgd, but it is deepspeed_cpu",
        ),
        ({"quantization": {"kind": "nf4"}}, "fused_optimizer = True: needs quantization = None, but it is kind='nf4'"),
    ],
)
def test_optimizers_without_a_fused_kernel_are_rejected(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings.model_validate(spec().settings.model_dump() | {"fused_optimizer": True} | changes)
