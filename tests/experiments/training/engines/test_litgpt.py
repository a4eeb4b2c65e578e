"""LitGPT's own training loop with tiny models."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from experiments.errors import InputError
from experiments.results.schema import Measured
from experiments.training import rank
from experiments.training.engines import litgpt
from experiments.training.measure.meters import StorageMeter
from experiments.training.measure.probe import Probe
from experiments.training.models.litgpt import LORA_TARGETS, TINY_SETTINGS
from tests.support.training.tiny_rows import LORA, NF4, in_bytes, shots
from tests.support.training.tiny_rows import spec as any_spec

ADAPTED = LORA | {"targets": list(LORA_TARGETS)}
ROWS: dict[str, Any] = {
    "plain": {},
    "accumulated": {"accumulate": 2, "train_samples": 16},
    "mixed": {"precision": "bf16-mixed"},
    "bf16": {"precision": "bf16-true"},
    "sgd": {"precision": "bf16-true", "optimizer": "sgd"},
    "lora": {"precision": "bf16-true", "lora": ADAPTED},
    "qlora": {"precision": "bf16-true", "lora": ADAPTED, "quantization": NF4},
}


def spec(**changes):
    common: dict[str, Any] = {"engine": "litgpt", "model": "tiny-llama-1.1b", "dataset": "constant", "max_length": 32}
    return any_spec(**common | {"warmup_steps": 1, "train_samples": 6} | changes)


class ProbeCalls:
    """The calls of the probe in order, and the model that it watches."""

    def __init__(self, monkeypatch):
        self.points: list[Any] = []
        self.forwards: list[Any] = []
        self.model: Any = None
        for name in ("before_forward", "after_forward", "before_backward", "after_backward", "before_optimizer_step"):
            self._follow(monkeypatch, name)
        self._follow(monkeypatch, "after_batch")
        watch = Probe.set_model

        def watched(probe, model, optimizers):
            self.model = model
            model.register_forward_hook(lambda *_: self.forwards.append(torch.is_grad_enabled()))
            watch(probe, model, optimizers)

        monkeypatch.setattr(Probe, "set_model", watched)

    def _follow(self, monkeypatch, name):
        real = getattr(Probe, name)

        def followed(probe, *args):
            self.points.append(name)
            return real(probe, *args)

        monkeypatch.setattr(Probe, name, followed)


@pytest.fixture(scope="module")
def measured_rows(tmp_path_factory):
    """The measurements of each of ROWS."""
    return {name: rank.run_rank(spec(**row), tmp_path_factory.mktemp(name)) for name, row in ROWS.items()}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_all_its_micro_steps_with_finite_losses(measured_rows, name):
    measured: Measured = measured_rows[name]
    assert measured.reason.startswith("fits")
    micro_steps = 8 if name == "accumulated" else 3
    assert len(measured.losses) == measured.speed.micro_steps == micro_steps
    assert all(math.isfinite(loss) for loss in measured.losses)
    assert measured.max_tokens == 32


@pytest.mark.parametrize("name", ROWS)
def test_the_first_loss_is_that_of_random_guessing(measured_rows, name):
    assert measured_rows[name].losses[0] == pytest.approx(math.log(TINY_SETTINGS["vocab_size"]), rel=0.1)


def test_every_point_of_a_step_is_reported_to_the_probe_in_order(monkeypatch, tmp_path):
    calls = ProbeCalls(monkeypatch)
    rank.run_rank(spec(accumulate=2, train_samples=8), tmp_path)
    pass_ = ["before_forward", "after_forward", "before_backward", "after_backward"]
    assert calls.points == 2 * [*pass_, "after_batch", *pass_, "before_optimizer_step", "after_batch"]


@pytest.mark.parametrize("changes", [{}, {"lora": ADAPTED}])
def test_the_model_runs_only_during_the_training(monkeypatch, tmp_path, changes):
    calls = ProbeCalls(monkeypatch)
    rank.run_rank(spec(**changes), tmp_path)
    assert calls.forwards == [True] * 3


def test_memory_of_weights_gradients_and_optimizer_state_depends_on_precision_and_optimizer(measured_rows):
    def largest(name, point, field):
        return max(shots(measured_rows[name].memory, point, field))

    whole = 4 * measured_rows["plain"].parameters
    for name, share in (("plain", 1), ("mixed", 1), ("bf16", 0.5)):
        assert largest(name, "before forward", "params_gib") == pytest.approx(share * whole)
        assert largest(name, "after backward", "grads_gib") == pytest.approx(share * whole)
        assert largest(name, "after optimizer step", "optimizer_gib") == pytest.approx(2 * share * whole, rel=0.01)
    assert largest("sgd", "after optimizer step", "optimizer_gib") == 0
    assert largest("qlora", "before forward", "params_gib") < largest("lora", "before forward", "params_gib")


def test_a_run_with_length_verdict_ends_early(tmp_path):
    measured = rank.run_rank(spec(length="verdict", train_samples=100), tmp_path)
    assert measured.outcome == "fits"
    assert 6 <= measured.speed.micro_steps <= 12
    assert measured.speed.planned_micro_steps == 50


def test_a_row_ends_after_max_steps(tmp_path):
    assert rank.run_rank(spec(max_steps=2, train_samples=100), tmp_path).speed.optimizer_steps == 2


def test_the_learning_rate_rises_during_the_warm_up_as_in_litgpt(monkeypatch, tmp_path):
    rates = []
    step = torch.optim.AdamW.step

    def spied(optimizer, *args, **options):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    rank.run_rank(spec(warmup_steps=2, train_samples=10, lr=1e-3), tmp_path)
    assert rates[:3] == pytest.approx([0, 0.5e-3, 1e-3])
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))


def test_a_quantized_model_has_the_embedding_of_bitsandbytes(monkeypatch, tmp_path):
    calls = ProbeCalls(monkeypatch)
    rank.run_rank(spec(**ROWS["qlora"]), tmp_path)
    embedding = calls.model.transformer.wte
    assert Counter(type(module).__name__ for module in calls.model.modules())["StableEmbedding"] == 1
    assert isinstance(embedding, nn.Embedding)
    assert embedding.weight.grad is not None


def test_the_tokens_of_a_batch_are_counted_as_in_litgpt():
    batch = litgpt.collate([torch.arange(3), torch.arange(5)])
    assert batch.keys() == {"input_ids", "labels", "token_counts"}
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 5)
    assert batch["token_counts"]["raw_plus_prompt_template"].tolist() == [[3], [5]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"devices": 2},
            "strategy 'auto' on 2 device.s. is not supported by the litgpt engine; allowed: auto on one device",
        ),
        ({"strategy": "ddp"}, "strategy 'ddp' on 1 device.s. is not supported by the litgpt engine"),
        ({"warmup_steps": 0}, "warmup_steps = 0: .* allowed: 1 or more, but not 3"),
        (
            {"warmup_steps": 3},
            "warmup_steps = 3: .* by 3 - warmup_steps.; allowed: 1 or more, but not 3",
        ),
        ({**ROWS["qlora"], "optimizer": "sgd"}, "optimizer = 'sgd': .* allowed: adamw"),
    ],
)
def test_unsupported_settings_are_rejected(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        rank.run_rank(spec(**changes), tmp_path)


def test_running_out_of_memory_is_an_outcome_of_a_row(tmp_path):
    whole = rank.run_rank(spec(), tmp_path).memory
    capacity = in_bytes(whole.peak_gib) - 1
    measured = rank.run_rank(spec(), tmp_path, StorageMeter(capacity))
    assert measured.outcome == "oom"
