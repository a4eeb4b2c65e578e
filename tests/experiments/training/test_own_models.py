"""Trainings of tiny models of many families."""

import pytest

from experiments.suites.models import Model
from experiments.training import rank
from tests.support.training.architectures import PUBLISHED
from tests.support.training.tiny_rows import spec

TEXT = {"dataset": "alpaca2k", "train_samples": None, "max_length": 64, "max_steps": 2, "model": "own"}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}


def train_row(name, out, **settings):
    own = Model(family="transformers", architecture=PUBLISHED[name])
    return rank.run_rank(spec(own=own, **TEXT | settings), out)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_of_any_family_trains_on_a_cpu(name, tmp_path):
    result = train_row(name, tmp_path)
    assert result.outcome == "fits"
    assert 0 < result.parameters < 20e6
    assert result.memory.snapshots[-1].optimizer_gib > 0


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b"])
def test_a_miniature_of_any_family_trains_with_adapters_and_the_trainer_of_transformers(name, tmp_path):
    result = train_row(name, tmp_path, engine="hf_trainer", lora=LORA)
    assert result.outcome == "fits"
    assert result.trainable_parameters < 0.1 * result.parameters
