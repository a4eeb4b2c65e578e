"""Pairs of changes that combinations rule out, in rows whose changes save or cost random amounts of memory."""

from random import Random
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.prediction.changes import RuledOut
from experiments.prediction.fit import fit_row
from experiments.suites.row_spec import RowSpec
from tests.support.runners.fake_predictions import Predictor
from tests.support.training.tiny_rows import LLAMA, spec

USABLE = 78.6
LITGPT: dict[str, Any] = {
    "engine": "litgpt",
    "model": LLAMA,
    "dataset": "alpaca2k",
    "warmup_steps": 1,
    "max_length": 64,
}
ROWS = {
    "odd batch": spec(engine="lightning", batch_size=3, train_samples=96),
    "even batch": spec(engine="lightning", batch_size=8, train_samples=256),
    "padded texts": spec(**LITGPT, batch_size=4, train_samples=256),
    "mixed precision": spec(**LITGPT, batch_size=2, train_samples=128, precision="bf16-mixed"),
    "two GPUs": spec(batch_size=3, train_samples=96, devices=2, strategy="fsdp"),
}
MOST_SAVED = {
    "optimizer_in_backward": 3.0,
    "chunked_loss": 2.0,
    "activation_offload": 20.0,
    "lora": 30.0,
    "activation_checkpointing": 20.0,
    "precision": 15.0,
    "optimizer": 25.0,
    "batch_size": 10.0,
}
"""The most memory that a changed setting saves, GiB."""
PARTS: dict[str, dict[Any, float]] = {
    "activation_checkpointing": {False: 0.0, "selective": 0.5, True: 1.0},
    "optimizer": {"adamw": 0.0, "adam_8bit": 0.5, "adamw_cpu": 0.9, "deepspeed_cpu": 0.9, "sgd": 1.0},
    "precision": {"32-true": 0.0, "bf16-mixed": 0.0, "bf16-true": 1.0},
}
"""The part of it that each value saves."""
SEEDS = (4, 14)


def random_needs(row: RowSpec, seed: int):
    """Return the needs of a row that is too large: it often fits with two changes, and seldom with one.

    Packing, mixed precision, DeepSpeed and FSDP save memory or cost some. Each other change saves memory.
    """
    random, unchanged = Random(seed), row.settings.model_dump()
    saved = {name: most * random.random() for name, most in MOST_SAVED.items()}
    packing, mixed, deepspeed, fsdp = (random.uniform(-10, most) for most in (15, 10, 15, 20))
    too_large = random.uniform(1.0, 1.9) * max(*saved.values(), packing, fsdp, deepspeed + 0.9 * saved["optimizer"])

    def needs(spec: RowSpec) -> float:
        settings = spec.settings.model_dump()
        need = USABLE + too_large
        for name in ("optimizer_in_backward", "chunked_loss", "activation_offload", "lora"):
            need -= saved[name] if settings[name] != unchanged[name] else 0.0
        for name, parts in PARTS.items():
            need -= saved[name] * (parts[settings[name]] - parts[unchanged[name]])
        need -= saved["batch_size"] * (1 - settings["batch_size"] / unchanged["batch_size"])
        need -= packing if settings["packing"] and not unchanged["packing"] else 0.0
        need -= mixed if settings["precision"] == "bf16-mixed" != unchanged["precision"] else 0.0
        need -= deepspeed if settings["optimizer"] == "deepspeed_cpu" else 0.0
        return max(1.0, need - (fsdp * settings["devices"] / 8 if settings["strategy"] == "fsdp" else 0.0))

    return needs


def failing_predictor(needs):
    """Return a predictor that cannot predict rows with LoRA and SGD."""
    predictor = Predictor(needs)

    def predict(specs, on_failure):
        failing = [spec for spec in specs if spec.settings.lora and spec.settings.optimizer == "sgd"]
        for one in failing:
            on_failure(one, InputError("cannot be traced"))
        return predictor([spec for spec in specs if spec not in failing])

    return predict


@pytest.mark.parametrize("predictor", [Predictor, failing_predictor])
@pytest.mark.parametrize("row", ROWS)
def test_the_pairs_are_those_that_fit_if_all_pairs_are_tried(monkeypatch, row, predictor):
    needs = [random_needs(ROWS[row], seed) for seed in SEEDS]
    found = [fit_row(ROWS[row], predictor(one)) for one in needs]
    assert any(one.pairs for one in found)
    monkeypatch.setattr(RuledOut, "rule_out_all", lambda *_: False)
    monkeypatch.setattr(RuledOut, "not_ruled_out", lambda _, pairs: pairs)
    assert found == [fit_row(ROWS[row], predictor(one)) for one in needs]


@pytest.mark.parametrize(
    "costs", [lambda settings: settings.packing, lambda settings: settings.devices > 1], ids=["packing", "FSDP"]
)
def test_a_change_that_costs_memory_does_not_rule_out_a_pair_without_it(costs):
    def needs(row: RowSpec) -> float:
        settings = row.settings
        both = settings.lora and settings.activation_checkpointing is True
        return 60.0 if both and not costs(settings) else 100.0

    found = fit_row(ROWS["padded texts"], Predictor(needs))
    assert [one.change for one in found.pairs] == ["activation checkpointing; LoRA, rank 16"]
