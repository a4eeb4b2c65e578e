"""Numbers of a configuration or an option that would fill memory or never end: one line, before anything is built."""

import json

import pytest

from experiments.cli.app import main
from experiments.prediction.script.command import parse_command
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import ScriptFailed, trace_script
from experiments.suites.models import Model, models

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 100, "n_positions": 1024}
HUGE = 10**9
SIZES = [
    ({"n_layer": HUGE}, "n_layer = 1000000000: allowed: a whole number from 1 to 1000"),
    ({"n_layer": 1e9}, "n_layer = 1000000000.0: allowed: a whole number from 1 to 1000"),
    ({"n_layer": True}, "n_layer = True: allowed: a whole number from 1 to 1000"),
    ({"num_hidden_layers": -3}, "num_hidden_layers = -3: allowed: a whole number from 1 to 1000"),
    ({"n_head": HUGE}, "n_head = 1000000000: allowed: a whole number from 1 to 10000"),
    ({"n_head": 0}, "n_head = 0: allowed: a whole number from 1 to 10000"),
    ({"num_key_value_heads": 0}, "num_key_value_heads = 0: allowed: a whole number from 1 to 10000"),
    ({"n_embd": 10**400}, "n_embd = 1000"),
    ({"vocab_size": HUGE}, "vocab_size = 1000000000: allowed: a whole number from 1 to 10000000"),
    ({"vocab_size": 0}, "vocab_size = 0: allowed"),
    ({"max_position_embeddings": 0}, "max_position_embeddings = 0: allowed: a whole number from 1 to 100000000"),
    ({"text_config": {"num_layers": HUGE}}, "num_layers = 1000000000: allowed"),
    ({"num_attention_heads": [1, HUGE]}, "num_attention_heads = 1000000000: allowed"),
]
OPTIONS = [
    ("--batch 1000000000", "--batch 1000000000: allowed: whole numbers from 1 to 999999999"),
    ("--batch 100000000", "--batch 100000000 --accumulate 1 --devices 1: samples of an optimizer step: 100000000;"),
    ("--batch 1e9", "--batch 1e9: allowed: whole numbers from 1"),
    (f"--batch {'9' * 5000}", "allowed: whole numbers from 1"),
    ("--batch 100000 --accumulate 1000", "samples of an optimizer step: 100000000; allowed: at most 16777216"),
    ("--devices 1000000000", "samples of an optimizer step: 1000000000; allowed: at most 16777216"),
    ("--batch 1000000 --seq 1000", "--batch 1000000 --seq 1000: tokens of a micro-step: 1000000000; allowed: at most"),
    ("--target-seq 1000000000", "tokens of a micro-step: 1000000000; allowed: at most 67108864"),
    ("--lora-r 1000000000", "--lora-r 1000000000: rank of the adapters: 1000000000; allowed: at most 65536"),
]


def _rejection_line(tmp_path, capsys, config, command, *options) -> str:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    words = [command, "--model", str(tmp_path / "config.json"), "--card", "a100_80gb", *options]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.timeout(60)
@pytest.mark.parametrize("loop", ["trainer", "lightning"])
@pytest.mark.parametrize(("change", "message"), SIZES, ids=lambda value: str(value)[:30])
def test_a_size_that_no_model_has_is_rejected_before_the_model_is_built(tmp_path, capsys, change, message, loop):
    assert message in _rejection_line(tmp_path, capsys, {**GPT2, **change}, "predict", "--loop", loop)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", ["predict", "fit"])
@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value)[:30])
def test_a_step_too_large_for_any_machine_is_rejected_before_the_model_is_built(
    tmp_path, capsys, options, message, command
):
    assert message in _rejection_line(tmp_path, capsys, GPT2, command, *options.split())


def test_a_model_config_in_which_a_key_occurs_twice_is_rejected(tmp_path, capsys):
    text = json.dumps(GPT2)[:-1] + ', "n_layer": 3}'
    assert "not a JSON file (the key 'n_layer' occurs twice)" in _rejection_line(tmp_path, capsys, text, "predict")


def test_a_model_of_a_suite_has_the_same_limits_as_one_of_the_command_line():
    with pytest.raises(ValueError, match="architecture: n_layer = 1000000000: allowed: a whole number from 1 to 1000"):
        Model(family="transformers", architecture={**GPT2, "n_layer": HUGE})


def test_every_known_model_is_within_the_limits():
    assert len(models()) > 5


def test_a_command_too_long_for_a_process_argument_reaches_the_tracer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import sys\nsys.exit(len(sys.argv[1]) // 100_000)\n")
    command = ["python", "train.py", "x" * 300_000]
    parse_command(command)
    with pytest.raises(ScriptFailed, match="exit code 3"):
        trace_script(command, ["a100_80gb"], print, ScriptOptions())
