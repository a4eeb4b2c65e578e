"""The Slurm guide's rows on one GPU with tiny models, in transformers' Trainer."""

from functools import cache

import pytest
import torch

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from experiments.training import rank
from experiments.training.data.texts import TINY_TOKENS
from experiments.training.engines.hf_trainer import build_arguments
from experiments.training.models.build import build_model
from tests.support.results.in_memory import CPU
from tests.support.training.tiny_rows import ROW, TEXT, in_bytes, shots, spec

SUITE = suite_named("slurm_hf_trainer")
CARD = "v100_32gb"
ON_ONE_GPU = [row.id for row in SUITE.rows_for(CARD) if SUITE.settings(row, CARD).world_size == 1]
TRAINED = [row for row in ON_ONE_GPU if SUITE.settings(SUITE.row(row), CARD).task == "train"]
PROMPT_TOKENS = SUITE.settings(SUITE.row("neo-inference"), CARD).prompt_length


def row(name, **changes):
    settings = SUITE.settings(SUITE.row(name), CARD).model_copy(update={"max_length": 24, "max_steps": 2} | changes)
    return RowSpec.model_validate(ROW | {"card": CARD, "settings": settings})


@pytest.fixture(scope="module")
def measure_row(tmp_path_factory):
    """Return the measurements of a row of the suite; each row runs once."""
    return cache(lambda name: rank.run_rank(row(name), tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_on_one_gpu_trains_all_its_steps(measure_row, name):
    measured = measure_row(name)
    assert measured.reason.startswith("fits")
    assert measured.speed.optimizer_steps == 2
    assert len(measured.losses) == 2
    assert all(0 < loss < 20 for loss in measured.losses)
    assert measured.max_tokens == TINY_TOKENS


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_has_snapshots_at_every_point_of_its_steps(measure_row, name):
    points = ["before forward", "after forward", "after backward", "after optimizer step"]
    memory = measure_row(name).memory
    assert [(shot.step, shot.point) for shot in memory.snapshots] == [(step, at) for step in (0, 1) for at in points]
    assert memory.peak_by_phase_gib.keys() == {"load", "forward", "backward", "optimizer step"}
    assert min(shots(memory, "after forward", "activations_gib")) > max(
        shots(memory, "before forward", "activations_gib")
    )


def test_weights_gradients_and_optimizer_moments_are_bfloat16_and_gradients_are_freed(measure_row):
    measured = measure_row("neo-1gpu")
    weights = 2 * measured.parameters
    assert set(shots(measured.memory, "before forward", "params_gib")) == {weights}
    assert set(shots(measured.memory, "before forward", "grads_gib")) == {0}
    assert set(shots(measured.memory, "after optimizer step", "grads_gib")) == {weights}
    assert min(shots(measured.memory, "after optimizer step", "optimizer_gib")) >= 2 * weights


def test_a_row_with_adapters_trains_only_the_adapters(measure_row):
    plain, adapters, quantized = (measure_row(name) for name in ("neo-1gpu", "neo-1gpu-peft", "neo-1gpu-peft-4bit"))
    assert plain.trainable_parameters == plain.parameters
    assert adapters.trainable_parameters == quantized.trainable_parameters == adapters.parameters - plain.parameters
    for measured in (adapters, quantized):
        grads = shots(measured.memory, "after backward", "grads_gib")
        assert set(grads) == {4 * measured.trainable_parameters}


def test_gradients_accumulate_over_micro_steps(tmp_path):
    measured = rank.run_rank(spec(accumulate=2, max_steps=2, **TEXT), tmp_path)
    steps = [(shot.step, shot.micro_step) for shot in measured.memory.snapshots if shot.point == "after backward"]
    assert steps == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(shots(measured.memory, "after optimizer step", "grads_gib")) == 2
    assert shots(measured.memory, "before forward", "grads_gib")[:2] == [0, 4 * measured.parameters]


def test_a_run_with_length_verdict_is_shorter_than_the_full_training(tmp_path):
    measured = rank.run_rank(spec(length="verdict", max_steps=40, **TEXT), tmp_path)
    assert measured.speed.planned_micro_steps == 40
    assert 6 <= measured.speed.micro_steps <= 12


def test_the_trainer_uses_the_optimizer_of_the_row(tmp_path):
    measured = rank.run_rank(spec(optimizer="sgd", max_steps=1, **TEXT), tmp_path)
    assert set(shots(measured.memory, "after optimizer step", "optimizer_gib")) == {0}


def test_generation_needs_more_memory_than_the_weights_and_reaches_the_maximum_length(
    measure_row, monkeypatch, tmp_path
):
    measured = measure_row("neo-inference")
    assert measured.outcome == "fits"
    assert (measured.speed, measured.losses) == (None, ())
    assert shots(measured.memory, "before forward", "params_gib") == [2 * measured.parameters]
    assert in_bytes(measured.memory.peak_gib) > 2 * measured.parameters
    model, lengths = build_model(row("neo-inference"), torch.device("cpu")), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: lengths.append(given["input_ids"].shape) or forward(**given))
    monkeypatch.setattr("experiments.training.engines.hf_trainer.build_model", lambda *_: model)
    rank.run_rank(row("neo-inference"), tmp_path)
    assert lengths == [(4, PROMPT_TOKENS), *[(4, 1)] * (24 - PROMPT_TOKENS - 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "deepspeed_stage_2_offload"},
            r"^strategy 'deepspeed_stage_2_offload' is not supported by the hf_trainer engine;"
            r" allowed: auto, ddp, fsdp$",
        ),
        ({"devices": 4, "strategy": "ddp"}, r"^1 rank\(s\) are running, the row needs 4; use torchrun$"),
    ],
)
def test_unsupported_settings_are_rejected(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        build_arguments(spec(**TEXT, **changes), CPU, tmp_path)


def test_a_max_length_that_does_not_exceed_the_prompt_is_rejected(tmp_path):
    with pytest.raises(
        InputError, match=f"^max_length = 8: the prompt already has {PROMPT_TOKENS} tokens; allowed: more$"
    ):
        rank.run_rank(spec(**TEXT | {"max_length": 8}, task="generate"), tmp_path)


def test_text_is_generated_by_one_process_and_several_nodes_are_rejected(tmp_path):
    measured = rank.run_rank(spec(**TEXT, task="generate", devices=2, global_batch_size=4, batch_size=None), tmp_path)
    assert measured.outcome == "fits"
    with pytest.raises(InputError, match=r"^nodes = 2: text is generated by one process; allowed: 1$"):
        rank.run_rank(spec(**TEXT, task="generate", nodes=2), tmp_path)


def test_the_batch_of_a_rank_is_its_share_of_the_global_batch():
    assert spec(**TEXT, batch_size=None, global_batch_size=8, devices=4, strategy="ddp").settings.batch_size == 2
    assert spec(**TEXT, batch_size=None, global_batch_size=8, devices=4, task="generate").settings.batch_size == 8
    with pytest.raises(ValueError, match=r"global_batch_size = 6: cannot be divided by .* 4 device"):
        spec(**TEXT, batch_size=None, global_batch_size=6, devices=4, strategy="ddp")


@pytest.mark.parametrize(("precision", "autocast"), [("32-true", False), ("bf16-mixed", True), ("bf16-true", True)])
def test_a_row_trains_with_autocast_in_bfloat16_and_without_autocast_in_32_bit(tmp_path, precision, autocast):
    assert build_arguments(spec(precision=precision, **TEXT), CPU, tmp_path).bf16 == autocast
