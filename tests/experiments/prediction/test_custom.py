"""Options of a custom training are converted to a row; errors in them are one line."""

import json
import socket
import time
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.prediction import custom_spec
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import describe_training
from experiments.prediction.predict import predict

CARD = "v100_32gb"
GPT2 = {"model_type": "gpt2", "n_positions": 1024, "n_embd": 768}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
T5 = {"model_type": "t5", "n_positions": 512, "d_model": 512}


def config(path, data) -> str:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_the_options_of_a_custom_training_become_a_row_of_two_optimizer_steps_on_texts_of_one_length():
    spec = CustomTraining("tiny-llama-1.1b", CARD, 8, 512, accumulate=4, devices=2, precision="bf16-true").spec
    settings = spec.settings
    assert (spec.size, spec.length, spec.weights, spec.data, spec.model) == (
        "full",
        "peak",
        "random",
        "synthetic",
        None,
    )
    assert (settings.dataset, settings.max_length, settings.workers) == ("constant", 512, 0)
    assert (settings.batch_size, settings.accumulate, settings.global_batch_size) == (8, 4, 64)
    assert settings.train_samples == 2 * settings.global_batch_size
    assert (settings.precision, settings.optimizer, settings.strategy) == ("bf16-true", "adamw", "ddp")


def test_the_default_is_32_bit_adamw_on_one_gpu():
    settings = CustomTraining("gpt-neo-1.3b", CARD).spec.settings
    assert (settings.precision, settings.optimizer, settings.strategy, settings.devices) == (
        "32-true",
        "adamw",
        "auto",
        1,
    )
    assert settings.lora is None
    assert not settings.activation_checkpointing


def test_only_equal_options_of_a_custom_training_give_the_same_fingerprint():
    ask = CustomTraining("tiny-llama-1.1b", CARD, batch=3)
    assert ask.spec.fingerprint == CustomTraining("tiny-llama-1.1b", CARD, batch=3).spec.fingerprint
    assert ask.spec.fingerprint != CustomTraining("tiny-llama-1.1b", CARD, batch=4).spec.fingerprint


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("blip2-opt-2.7b", ("q_proj", "v_proj")),
        ("blip2-flan-t5-xl", ("q", "v")),
        ("tiny-llama-1.1b", "all-linear"),
        (T5, ("q", "v")),
        ({"model_type": "blip-2", "text_config": {"model_type": "opt"}}, ("q_proj", "v_proj")),
        (GPT2, "all-linear"),
    ],
)
def test_adapters_are_by_default_on_the_usual_layers_of_the_model(tmp_path, model, targets):
    name = model if isinstance(model, str) else config(tmp_path / "m.json", model)
    lora = CustomTraining(name, CARD, lora_r=16).spec.settings.lora
    assert (lora.r, lora.alpha, lora.targets) == (16, 32, targets)


@pytest.mark.parametrize(("given", "targets"), [("q_proj, k_proj", ("q_proj", "k_proj")), ("all-linear", "all-linear")])
def test_adapters_are_on_the_named_layers(given, targets):
    assert CustomTraining("blip2-opt-2.7b", CARD, lora_r=4, lora_targets=given).spec.settings.lora.targets == targets


@pytest.mark.parametrize(
    ("model", "given", "dropout"),
    [
        (GPT2, None, 0.05),
        (EXPERTS, None, 0.0),
        ({"model_type": "llama4", "text_config": EXPERTS}, None, 0.0),
        (EXPERTS | {"num_local_experts": 1}, None, 0.05),
        (EXPERTS, 0.1, 0.1),
        (GPT2, 0.0, 0.0),
    ],
)
def test_adapters_have_by_default_no_dropout_only_in_a_mixture_of_experts(tmp_path, model, given, dropout):
    training = CustomTraining(config(tmp_path / "m.json", model), CARD, lora_r=4, lora_dropout=given)
    assert training.spec.settings.lora.dropout == dropout
    assert (f"LoRA rank 4, dropout {dropout:g}" in describe_training(training, "a text")) == (dropout != 0.05)


@pytest.mark.parametrize("setting", ["activation_offload", "chunked_loss", "optimizer_in_backward"])
def test_an_option_that_saves_memory_changes_only_the_setting_with_the_same_name(setting):
    change: dict[str, Any] = {setting: True}
    usual, changed = (
        CustomTraining("tiny-llama-1.1b", CARD, loop="litgpt", **options).spec.settings for options in ({}, change)
    )
    assert changed == usual.model_copy(update=change)


def test_offload_selects_the_optimizer_of_deepspeed():
    for strategy in ("deepspeed_stage_2_offload", "deepspeed_stage_3_offload"):
        assert CustomTraining("tiny-llama-1.1b", CARD, strategy=strategy).spec.settings.optimizer == "deepspeed_cpu"


def test_a_model_from_a_config_file_has_the_name_of_the_file_or_of_its_folder(tmp_path):
    (tmp_path / "small").mkdir()
    spec = CustomTraining(config(tmp_path / "small" / "config.json", GPT2), CARD).spec
    assert spec.row == spec.settings.model == "small"
    assert (spec.model.family, spec.model.architecture) == ("transformers", GPT2)
    assert CustomTraining(config(tmp_path / "mine.json", GPT2), CARD).spec.row == "mine"
    assert CustomTraining(str(tmp_path / "small"), CARD).spec == spec


def test_the_config_of_a_hub_id_is_downloaded(monkeypatch):
    monkeypatch.setattr(custom_spec, "_download_config", lambda name: json.dumps({**GPT2, "of": name}))
    spec = CustomTraining("org/name", CARD).spec
    assert spec.row == "org/name"
    assert spec.model.architecture["of"] == "org/name"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model": "nope"},
            "--model nope: unknown; allowed: a name that `testbed models` lists, the path of a config.json or of its "
            "folder, or",
        ),
        ({"model": "nope.json"}, "--model nope.json: cannot be read (No such file or directory); allowed: "),
        ({"card": "nope"}, "--card: unknown card 'nope'; allowed: a100_80gb"),
        ({"batch": 0}, "--batch 0: allowed: a whole number above 0"),
        ({"batch": -1}, "--batch -1: allowed: a whole number above 0"),
        ({"seq": 0}, "--seq 0: allowed: a whole number above 0"),
        ({"devices": -2}, "--devices -2: allowed: a whole number above 0"),
        ({"accumulate": 0}, "--accumulate 0: allowed: a whole number above 0"),
        ({"lora_r": 0}, "--lora-r 0: allowed: a whole number above 0"),
        ({"seq": 2049}, "--seq 2049: tiny-llama-1.1b has 2048 positions; allowed: 1 to 2048"),
        ({"lora_targets": "q"}, "--lora-targets q: needs --lora-r"),
        ({"lora_r": 4, "lora_targets": " , "}, "allowed: names of linear layers"),
        ({"lora_dropout": 0.1}, "--lora-dropout 0.1: needs --lora-r, the rank of the adapters"),
        ({"lora_r": 4, "lora_dropout": 1.5}, "--lora-dropout 1.5: allowed: a number from 0 to less than 1"),
        ({"lora_r": 4, "lora_dropout": -0.1}, "--lora-dropout -0.1: allowed: a number from 0 to less than 1"),
        ({"optim": "deepspeed_cpu"}, "--optim deepspeed_cpu: needs --strategy, one of deepspeed_stage_2_offload"),
        (
            {"optim": "sgd", "strategy": "deepspeed_stage_2_offload"},
            "--optim sgd: with --strategy deepspeed_stage_2_offload, allowed: deepspeed_cpu",
        ),
    ],
)
def test_an_error_is_reported_in_one_line_that_names_the_option(flags, message):
    with pytest.raises(InputError) as caught:
        _ = CustomTraining(**{"model": "tiny-llama-1.1b", "card": CARD} | flags).spec
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "not the config.json of a model: the key 'model_type' is missing"),
        ({"hidden_size": 1}, "not the config.json of a model: the key 'model_type' is missing"),
        ({"model_type": 3}, "not the config.json of a model: the key 'model_type' is missing"),
    ],
)
def test_the_error_for_a_file_without_a_config_names_the_file(tmp_path, data, message):
    path = config(tmp_path / "m.json", data)
    with pytest.raises(InputError) as caught:
        _ = CustomTraining(path, CARD).spec
    assert str(caught.value).startswith(f"--model {path}: {message}")


def test_binary_files_and_folders_are_rejected(tmp_path):
    (tmp_path / "m.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    for path, says in ((tmp_path / "m.json", "not a JSON file"), (tmp_path / "folder.json", "cannot be read")):
        with pytest.raises(InputError, match=says):
            _ = CustomTraining(str(path), CARD).spec


def test_only_models_with_absolute_positions_limit_the_length_of_texts(tmp_path):
    assert CustomTraining(config(tmp_path / "t5.json", T5), CARD, seq=4096).spec.settings.max_length == 4096
    inner = {"model_type": "blip-2", "text_config": {"model_type": "opt", "max_position_embeddings": 64}}
    for data, positions in ((GPT2, 1024), (inner, 64)):
        with pytest.raises(InputError, match=f"has {positions} positions"):
            _ = CustomTraining(config(tmp_path / "m.json", data), CARD, seq=positions + 1).spec


def test_an_unreachable_hub_is_reported_at_once(monkeypatch):
    pytest.importorskip("huggingface_hub")

    def unreachable(*_, **__):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to ask again"))
    with pytest.raises(InputError, match=r"^--model org/name: cannot download its .*; pass the path of a config.json"):
        _ = CustomTraining("org/name", CARD).spec


def test_a_config_in_the_cache_of_the_hub_is_used_if_the_hub_is_unreachable(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants

    def unreachable(*_, **__):
        raise socket.gaierror("no such host")

    (cached := tmp_path / "models--org--cached" / "snapshots" / "0a").mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(GPT2))
    (refs := tmp_path / "models--org--cached" / "refs").mkdir()
    (refs / "main").write_text("0a")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert CustomTraining("org/cached", CARD).spec.model.architecture == GPT2


def test_loops_that_run_as_rows_are_traced_and_have_a_time(library_cache):
    options: dict[str, Any] = {"model": "tiny-llama-1.1b", "card": "a100_80gb", "seq": 32, "precision": "bf16-true"}
    found = predict([CustomTraining(**options, loop=loop).spec for loop in ("lightning", "litgpt")], library_cache)
    assert {one.spec.settings.engine for one in found} == {"lightning", "litgpt"}
    for one in found:
        assert one.predicted_outcome == "fits"
        assert one.samples_per_s == pytest.approx(1 / one.time.step_s)
