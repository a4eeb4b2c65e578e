"""Tiny LitGPT models in Lightning's Trainer: in this process, and on two ranks with gloo."""

import math
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.training import rank
from experiments.training.models.litgpt import LORA_TARGETS
from experiments.training.worker import run_row
from tests.support.training.tiny_rows import LORA, NF4, shots
from tests.support.training.tiny_rows import spec as any_spec

ADAPTED = LORA | {"targets": list(LORA_TARGETS)}


def spec(**changes):
    common: dict[str, Any] = {
        "engine": "litgpt_trainer",
        "model": "open-llama-7b",
        "dataset": "constant",
        "max_length": 32,
    }
    return any_spec(**common | changes)


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"precision": "bf16-true"}, {"precision": "bf16-mixed"}, {"lora": ADAPTED}]
)
def test_a_row_on_one_device_trains_all_its_micro_steps(tmp_path, changes):
    measured = rank.run_rank(spec(**changes), tmp_path)
    assert measured.reason.startswith("fits")
    assert len(measured.losses) == measured.speed.micro_steps == 6
    assert all(math.isfinite(loss) for loss in measured.losses)


def test_both_engines_compute_the_same_loss(tmp_path):
    first, second = (
        rank.run_rank(spec(engine=engine, warmup_steps=1), tmp_path).losses for engine in ("litgpt", "litgpt_trainer")
    )
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[0] != first[1]


@pytest.mark.usefixtures("ranks_start_warm")
@pytest.mark.parametrize(("strategy", "share"), [("ddp", 1), ("fsdp", 1 / 2)])
def test_two_ranks_train_on_different_data_and_with_fsdp_each_needs_half_of_the_memory(tmp_path, strategy, share):
    first, second = run_row(spec(devices=2, strategy=strategy, time_limit_s=240), tmp_path, "").ranks
    assert first.reason.startswith("fits")
    assert second.reason.startswith("fits")
    assert first.parameters == second.parameters
    assert len(first.losses) == len(second.losses) == 3
    assert all(math.isfinite(loss) for loss in first.losses + second.losses)
    assert first.losses[0] != second.losses[0]
    whole = 4 * first.parameters
    for measured in (first, second):
        assert max(shots(measured.memory, "before forward", "params_gib")) == pytest.approx(share * whole, rel=0.01)
        assert max(shots(measured.memory, "after backward", "grads_gib")) == pytest.approx(share * whole, rel=0.01)
        state = max(shots(measured.memory, "after optimizer step", "optimizer_gib"))
        assert state == pytest.approx(2 * share * whole, rel=0.01)


def test_quantized_weights_are_rejected(tmp_path):
    with pytest.raises(
        InputError, match=r"^quantization is not supported by the litgpt_trainer engine; allowed: the engine"
    ):
        rank.run_rank(spec(lora=ADAPTED, quantization=NF4), tmp_path)
