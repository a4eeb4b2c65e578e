"""The search for the largest batch that fits, and for changes of the settings that save memory."""

from random import Random

import pytest

from experiments.errors import InputError
from experiments.prediction.changes import RuledOut
from experiments.prediction.custom import CustomTraining
from experiments.prediction.fit import change_settings, fit_row, single_changes
from experiments.prediction.predict import suite_row_spec
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from tests.support.runners.fake_predictions import Predictor
from tests.support.training.tiny_rows import LLAMA, spec

SUITE = suite_named("single_gpu_blip2")
USABLE = 78.6


def custom_spec(batch: int = 32, **flags) -> RowSpec:
    return CustomTraining("open-llama-3b", "a100_80gb", batch=batch, **flags).spec


def needs_linear(spec: RowSpec) -> float:
    """Return a needed memory of 40 GiB plus 2 GiB per sample, minus what the changed settings save."""
    settings = spec.settings
    saved = {"sgd": 20.0, "adam_8bit": 10.0, "deepspeed_cpu": 25.0}.get(settings.optimizer, 0.0)
    each = 0.5 if settings.activation_checkpointing else 2.0
    return (40.0 - saved) / (1 if settings.precision == "32-true" else 2) + each * settings.batch_size


def needs_constant_then_linear(spec: RowSpec) -> float:
    """Return a needed memory that is constant until the activations exceed the optimizer step."""
    return max(60.0, 30.0 + 1.37 * spec.settings.batch_size)


@pytest.mark.parametrize("batch", [1, 7, 32, 512])
@pytest.mark.parametrize(
    ("needs", "largest", "likely"),
    # 2 % of 78.6 GiB are 1.572: fits up to 77.028, more likely than not up to 78.6
    [
        (needs_linear, 18, 19),
        (needs_constant_then_linear, 34, 35),
        (lambda spec: 100.0, 0, 0),
        (lambda spec: 78.0, 0, 4096),
    ],
)
def test_the_largest_batch_fits_and_a_batch_with_one_more_sample_does_not(batch, needs, largest, likely):
    found = fit_row(custom_spec(batch), Predictor(needs))
    assert [one.spec.settings.batch_size if one else 0 for one in (found.largest, found.largest_borderline)] == [
        largest,
        likely,
    ]
    assert found.largest is None or found.largest.predicted_outcome == "fits"


def test_the_search_for_the_largest_batch_traces_at_most_six_rows():
    predict = Predictor(needs_linear)
    fit_row(custom_spec(4), predict)
    assert len(predict.asked) <= 6


def test_a_row_that_fits_needs_no_change():
    assert fit_row(custom_spec(4), Predictor(needs_linear)).changes == ()


def test_changes_are_listed_cheapest_first_with_the_memory_that_each_needs():
    found = fit_row(custom_spec(32), Predictor(needs_linear))
    assert [one.change for one in found.changes] == [
        "batch 16, accumulated 2 times",
        "optimizer in backward",
        "chunked loss",
        "precision bf16-mixed",
        "precision bf16-true",
        "selective checkpointing",
        "activation checkpointing",
        "8-bit Adam",
        "SGD",
        "LoRA, rank 16",
        "AdamW on the host",
        "activations on the host",
        "DeepSpeed optimizer offload",
        "FSDP over 2 GPUs",
        "FSDP over 4 GPUs",
        "FSDP over 8 GPUs",
    ]
    verdicts = {one.change: one.prediction.predicted_outcome for one in found.changes}
    assert verdicts["batch 16, accumulated 2 times"] == "fits"
    assert verdicts["precision bf16-true"] == "oom"
    assert verdicts["activation checkpointing"] == "fits"


def test_a_smaller_batch_keeps_the_samples_per_optimizer_step():
    found = fit_row(custom_spec(64, accumulate=3), Predictor(needs_linear))
    halved = found.changes[0].prediction.spec.settings
    assert (halved.batch_size, halved.accumulate) == (16, 12)
    assert halved.global_batch_size == custom_spec(64, accumulate=3).settings.global_batch_size


@pytest.mark.parametrize(
    "changes", [{"accumulate": 3}, {"devices": 2}, {"optim": "deepspeed_cpu", "strategy": "deepspeed_stage_2_offload"}]
)
def test_an_optimizer_step_in_the_backward_pass_is_proposed_only_where_it_is_possible(changes):
    found = fit_row(custom_spec(32, **changes), Predictor(needs_linear))
    assert "optimizer in backward" not in [one.change for one in found.changes]


def test_a_pair_of_changes_that_exclude_each_other_is_not_proposed():
    found = fit_row(custom_spec(32), Predictor(lambda settings: 1e3))
    assert found.pairs == ()
    assert all(one.prediction for one in found.changes)


@pytest.mark.parametrize("problem", [InputError, RuntimeError])
def test_an_impossible_change_is_listed_with_the_reason(problem):
    asked = []

    def predict(rows, on_failure):
        asked.append(len(rows))
        for row in rows:
            if row.settings.strategy == "fsdp":
                on_failure(row, problem("no FSDP here"))
        return Predictor(needs_linear)([row for row in rows if row.settings.strategy != "fsdp"])

    found = fit_row(custom_spec(32), predict)
    assert asked[-1] == len(found.changes)  # all of them at once
    assert {one.change: one.reason for one in found.changes if one.prediction is None} == {
        f"FSDP over {gpus} GPUs": "no FSDP here" for gpus in (2, 4, 8)
    }
    assert found.changes[0].prediction is not None


def test_settings_that_a_row_already_has_are_not_proposed():
    row = suite_row_spec(SUITE, SUITE.row("xxl-cpu-offload"), "a100_80gb")
    assert [change.name for change in single_changes(row)] == ["activation checkpointing", "LoRA, rank 16"]
    four = custom_spec(devices=4, strategy="fsdp", precision="bf16-true", optim="sgd", activation_checkpointing=True)
    assert [change.name for change in single_changes(four)] == ["LoRA, rank 16", "FSDP over 8 GPUs"]


def test_a_proposed_change_to_sgd_removes_the_betas_of_adam():
    row = suite_row_spec(suite_named("beyond"), suite_named("beyond").row("llama-1b"), "a100_80gb")
    assert row.settings.betas
    (sgd,) = [change for change in single_changes(row) if change.name == "SGD"]
    assert change_settings(row, **sgd.settings).settings.betas is None
    with pytest.raises(InputError, match="optimizer = sgd: needs betas = None"):
        change_settings(row, optimizer="sgd")


def test_changes_that_other_settings_exclude_are_not_proposed():
    names = [change.name for change in single_changes(custom_spec(devices=2, strategy="ddp"))]
    assert not {"selective checkpointing", "AdamW on the host", "activations on the host"} & set(names)
    changed = change_settings(custom_spec(), activation_checkpointing="selective", activation_offload=True)
    names = [change.name for change in single_changes(changed)]
    assert "activation checkpointing" in names
    assert not {"selective checkpointing", "activations on the host"} & set(names)


@pytest.mark.parametrize("batch", [1, 13, 64, 400])
def test_a_row_with_a_changed_batch_keeps_its_other_settings_and_trains_whole_optimizer_steps(batch):
    row = suite_row_spec(SUITE, SUITE.row("grad-accumulation"), "a100_80gb")
    other = change_settings(row, batch_size=batch).settings
    assert (other.batch_size, other.global_batch_size) == (batch, 4 * batch)
    assert other.train_samples % (4 * batch) == 0
    assert other.train_samples >= 8 * batch
    assert abs(other.train_samples - 512) <= max(2 * batch, 8 * batch - 512)
    kept = {"batch_size", "global_batch_size", "train_samples"}
    assert other.model_dump(exclude=kept) == row.settings.model_dump(exclude=kept)


def needs_two(spec: RowSpec) -> float:
    """Return a needed memory that fits only with SGD and one of two more changes: 16-bit weights or checkpointing."""
    settings = spec.settings
    helps = [settings.precision == "bf16-true", settings.activation_checkpointing is True]
    return 60.0 if settings.optimizer == "sgd" and any(helps) and settings.devices == 1 else 100.0


def test_pairs_of_changes_are_proposed_cheapest_first_if_no_single_change_fits():
    predict = Predictor(needs_two)
    found = fit_row(custom_spec(3), predict)
    assert not any(one.prediction.predicted_outcome == "fits" for one in found.changes)
    assert [one.change for one in found.pairs] == ["precision bf16-true; SGD", "activation checkpointing; SGD"]
    assert found.pairs[0].cost == "weights in 16 bit; no moments: the training converges differently"
    both = found.pairs[1].prediction.spec.settings
    assert (both.optimizer, both.activation_checkpointing, both.precision) == ("sgd", True, "32-true")
    lora = next(change for change in single_changes(custom_spec(3)) if change.name.startswith("LoRA"))
    costlier = change_settings(custom_spec(3), **lora.settings, optimizer="sgd")
    assert costlier.fingerprint not in {spec.fingerprint for spec in predict.asked}


SAVINGS = {
    "optimizer_in_backward": 3.0,
    "chunked_loss": 2.0,
    "precision": 15.0,
    "activation_checkpointing": 20.0,
    "optimizer": 25.0,
    "lora": 30.0,
    "activation_offload": 20.0,
}


def needs_random(seed: int, too_large: float):
    """Return the needs of a row of 78.6 GiB + ``too_large``: each changed setting saves a random part of SAVINGS.

    FSDP and bf16-mixed can also cost memory.
    """
    random, unchanged = Random(seed), custom_spec(3).settings.model_dump()
    saved = {name: random.random() * most for name, most in SAVINGS.items()}
    fsdp, mixed = random.uniform(-10, 20), random.uniform(-10, 10)

    def needs(spec: RowSpec) -> float:
        settings = spec.settings.model_dump()
        need = USABLE + too_large - sum(saved[name] for name in SAVINGS if settings[name] != unchanged[name])
        need += saved["activation_checkpointing"] / 2 if settings["activation_checkpointing"] == "selective" else 0.0
        need += saved["optimizer"] / 2 if settings["optimizer"] == "adam_8bit" else 0.0
        need += saved["precision"] - mixed if settings["precision"] == "bf16-mixed" else 0.0
        return max(1.0, need - (fsdp * settings["devices"] / 8 if settings["strategy"] == "fsdp" else 0.0))

    return needs


@pytest.mark.parametrize("too_large", [20.0, 35.0, 60.0, 200.0])
@pytest.mark.parametrize("seed", range(5))
def test_ruling_out_pairs_gives_the_answer_of_trying_all_of_them(monkeypatch, seed, too_large):
    fast, slow = Predictor(needs_random(seed, too_large)), Predictor(needs_random(seed, too_large))
    found = fit_row(custom_spec(3), fast)
    monkeypatch.setattr(RuledOut, "rule_out_all", lambda *_: False)
    monkeypatch.setattr(RuledOut, "not_ruled_out", lambda _, pairs: pairs)
    assert found == fit_row(custom_spec(3), slow)
    assert too_large < 200 or len(fast.asked) < 0.4 * len(slow.asked)


def test_pairs_of_changes_are_tried_only_if_single_changes_save_too_little():
    assert fit_row(custom_spec(32), Predictor(needs_linear)).pairs == ()
    assert fit_row(custom_spec(3), Predictor(lambda spec: 100.0)).pairs == ()


@pytest.mark.parametrize(
    ("changes", "offered"),
    [({}, True), ({"packing": True}, False), ({"dataset": "constant"}, False), ({"engine": "lightning"}, False)],
)
def test_packing_is_proposed_for_padded_texts_if_the_engine_can_pack(changes, offered):
    row = {"engine": "litgpt", "model": LLAMA, "dataset": "alpaca2k", "warmup_steps": 1} | changes
    assert ("packing" in [change.name for change in single_changes(spec(**row))]) == offered
