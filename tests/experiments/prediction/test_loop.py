"""Custom trainings in a named training loop: errors, the largest batch, and the changes that save memory."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.prediction import loop_fit
from experiments.prediction.custom import LOOP_DESCRIPTIONS, CustomTraining
from experiments.prediction.fit import DEFAULT_LORA_RANK
from experiments.prediction.loop import describe_training, program_command, single_changes
from experiments.prediction.loop_fit import ProgramTraces, fit_program, try_changes
from experiments.prediction.script import trace
from tests.support.runners.fake_predictions import card_prediction

MODEL = ("--model", "tiny-llama-1.1b", "--card", "a100_80gb")
GENERATE = (*MODEL, "--task", "generate")
ROW = "single_gpu_blip2/xxl-sgd"


@pytest.fixture
def nothing_is_traced(monkeypatch):
    monkeypatch.setattr(trace, "trace_script", lambda *_: pytest.fail("traced"))


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize("command", ["predict", "fit"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MODEL, "--loop", "keras"), "--loop keras: allowed: trainer, plain, lightning, litgpt"),
        ((ROW, "--loop", "plain"), "--loop: needs --model; a row has its own settings"),
        ((ROW, *MODEL, "--loop", "plain"), f"--model tiny-llama-1.1b: not allowed with '{ROW}'"),
        (("--loop", "plain", "--", "python", "x.py"), "--loop: not allowed with a script, which has its own settings"),
        (("--model", "tiny-llama-1.1b", "--loop", "plain"), "--model tiny-llama-1.1b: needs --card, one of a100_80gb"),
        ((*MODEL, "--loop", "plain", "--strategy", "fsdp"), "--strategy fsdp: needs --devices 2 or more"),
        (
            (*MODEL, "--loop", "lightning", "--devices", "2", "--strategy", "fsdp2"),
            "--strategy fsdp2: allowed with --loop trainer, plain; with lightning, allowed: auto, ddp, fsdp, deepspeed",
        ),
        (
            (*MODEL, "--loop", "plain", "--strategy", "deepspeed_stage_2_offload"),
            "--strategy deepspeed_stage_2_offload: allowed with --loop lightning; with plain, allowed: auto, ddp, fsdp",
        ),
        (
            (*MODEL, "--loop", "plain", "--devices", "2", "--strategy", "fsdp2", "--precision", "16-mixed"),
            "--precision 16-mixed: with --loop plain --strategy fsdp2, allowed: 32-true, bf16-true, 16-true, bf16-mix",
        ),
        ((*MODEL, "--loop", "litgpt", "--devices", "2"), "--devices 2: with --loop litgpt, allowed: 1"),
        (("--model", "gpt-neo-1.3b", "--card", "24GiB", "--loop", "litgpt"), "with --loop litgpt, allowed: tiny-llama"),
        (
            (*MODEL, "--attention", "flash_attention_2"),
            "--precision 32-true: with --attention flash_attention_2, allowed: bf16-true, 16-true, bf16-mixed, 16-mix",
        ),
        ((*MODEL, "--clip-gradients", "-1"), "--clip-gradients -1.0: allowed: a number of at least 0"),
        (
            (*MODEL, "--loop", "lightning", "--clip-gradients", "1"),
            "--clip-gradients 1.0: allowed with --loop trainer, plain; not with lightning",
        ),
        ((*MODEL, "--quantization", "4bit"), "--quantization 4bit: needs --lora-r; quantized weights are not trained"),
        ((*MODEL, "--loop", "lightning", "--attention", "eager"), "allowed with --loop trainer, plain; not with lig"),
        ((*MODEL, "--loop", "lightning", "--optim", "lion"), "--optim lion: with --loop lightning, allowed: "),
        ((*MODEL, "--loop", "plain", "--batch", "two"), "--batch two: allowed: whole numbers from 1"),
        ((*MODEL, "--optimizer-in-backward"), "--optimizer-in-backward: allowed with --loop plain, lightning, litgpt"),
        (
            (*MODEL, "--loop", "plain", "--optimizer-in-backward", "--accumulate", "2"),
            "--loop plain needs --devices 1, --accumulate 1, --precision 32-true, bf16-true or bf16-mixed",
        ),
        (
            (*MODEL, "--loop", "lightning", "--optimizer-in-backward", "--accumulate", "2"),
            "optimizer_in_backward = True: needs accumulate = 1, but it is 2",
        ),
        ((*MODEL, "--target-seq", "0"), "--target-seq 0: allowed: a whole number above 0"),
        ((*MODEL, "--loop", "plain", "--max-gib", "4"), "--max-gib"),
        ((*GENERATE, "--optim", "sgd"), "--optim sgd: not allowed with --task generate, which trains nothing"),
        ((*GENERATE, "--loop", "plain"), "--loop plain: not allowed with --task generate"),
        ((*GENERATE, "--precision", "bf16-mixed"), "with --task generate, allowed: 32-true, bf16-true, 16-true"),
        (
            (*GENERATE, "--seq", "2000"),
            "--seq 2000 --new-tokens 128: tiny-llama-1.1b has 2048 positions; allowed: together at most",
        ),
        ((*GENERATE, "--new-tokens", "0"), "--new-tokens 0: allowed: a whole number above 0"),
        ((*MODEL, "--new-tokens", "5"), "--new-tokens 5: needs --task generate"),
        ((*MODEL, "--no-kv-cache"), "--no-kv-cache: needs --task generate"),
        ((ROW, "--task", "generate"), "--task: needs --model; a row has its own settings"),
        ((*MODEL, "--task", "chat"), "--task chat: allowed: train, generate"),
        ((*MODEL, "--sandbox"), "--sandbox: needs a script's command after --"),
    ],
)
def test_an_error_with_the_option_loop_is_reported_in_one_line(command, arguments, message, capsys):
    assert main([command, *arguments]) == 2
    messages = " ".join(capsys.readouterr().err.split())
    assert message in messages
    assert "Traceback" not in messages


@pytest.fixture
def traced_jobs(monkeypatch):
    """Record the traced jobs. Each sample needs 10 GiB, in bf16 half of it; adapters cannot be traced."""
    jobs: list[dict[str, Any]] = []

    def trace_script(words, cards, say, options, name):
        jobs.append(json.loads(words[-1]))
        if "lora" in jobs[-1]:
            raise trace.ScriptFailed(1)
        if words[0] == "torchrun":
            raise InputError("no FSDP here")
        need = jobs[-1].get("batch", 1) * (5.0 if jobs[-1].get("precision") == "bf16-true" else 10.0)
        card = card_prediction(cards[0], need, usable_gib=78.6)
        return [SimpleNamespace(cards=(card,), peak_gib=need, notes=(), sample="a text of 512 tokens")]

    monkeypatch.setattr(loop_fit, "trace_script", trace_script)
    return jobs


@pytest.mark.parametrize("loop", ["trainer", "plain"])
def test_the_largest_batch_of_a_loop_is_found_and_changes_are_tried_only_for_a_larger_batch(traced_jobs, loop):
    training = CustomTraining(model="tiny-llama-1.1b", card="a100_80gb", batch=12, loop=loop)
    traces = ProgramTraces([training.card], lambda _: None)
    (found,) = fit_program(training, traces)
    assert (found.largest, found.largest_borderline) == (7, 7)
    tried = {one.change: one for one in try_changes(training, found, traces)}
    assert tried["precision bf16-true"].batch_prediction.card.outcome == "fits"
    assert tried["precision bf16-mixed"].batch_prediction.card.outcome == "oom"
    assert "the script itself failed" in tried[f"LoRA, rank {DEFAULT_LORA_RANK}"].reason
    assert "FSDP over 2 GPUs" in tried
    assert "batch 6, accumulated 2 times" in tried
    assert ("optimizer in backward" in tried) == (loop == "plain")
    assert {"AdamW on the host", "activations on the host"} < tried.keys()
    assert any(job.get("optimizer") == "adamw_cpu" for job in traced_jobs)
    assert any(job.get("offload") for job in traced_jobs)
    assert any(job.get("chunked_loss") for job in traced_jobs)
    assert any(job.get("step_in_backward") for job in traced_jobs) == (loop == "plain")
    assert try_changes(CustomTraining(model=training.model, card=training.card, batch=7), found, traces) == []


def test_the_command_fit_for_a_model_prints_the_batches_and_the_changes_of_its_loop(traced_jobs, capsys):
    assert main(["fit", *MODEL, "--batch", "12", "--loop", "plain", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["loop"], data["largest_batch"], data["batches"][-1]["batch"]) == ("plain", 7, 12)
    assert "loop: a plain PyTorch loop" in data["assumed"]
    assert "12 x 1 samples, each a text of 512 tokens, 32-true, AdamW (foreach)" in data["assumed"]
    outcomes = {one["change"]: one["outcome"] for one in data["changes"]}
    assert (outcomes["precision bf16-true"], outcomes["SGD"]) == ("fits", "oom")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "32-true, AdamW (fused), gradients clipped at norm 1"),
        ({"loop": "plain"}, "32-true, AdamW (foreach)"),
        ({"loop": "lightning", "strategy": "deepspeed_stage_2_offload"}, "DeepSpeed's AdamW on the host, deepspeed_st"),
        ({"clip_gradients": 0.0, "optim": "lion"}, "32-true, lion"),
        ({"loop": "plain", "clip_gradients": 0.5}, "gradients clipped at norm 0.5"),
        ({"devices": 2}, "2 GPUs, ddp"),
        ({"devices": 2, "strategy": "fsdp2"}, "2 GPUs, fsdp2"),
    ],
)
def test_the_description_names_the_loop_the_sample_and_the_variant_of_the_optimizer(options, words):
    described = describe_training(CustomTraining("m", "24GiB", batch=2, **options), "an image of 8 x 8 pixels")
    assert LOOP_DESCRIPTIONS[options.get("loop", "trainer")] in described
    assert "2 x 1 samples, each an image of 8 x 8 pixels, " in described
    assert words in described
    assert ("clipped" in described) == ("clipped" in words or options.get("devices") == 2)


def test_changes_for_a_loop_of_the_labs_are_those_that_its_rows_support():
    names = [name for name, _ in single_changes(CustomTraining("open-llama-7b", "a100_80gb", loop="lightning"))]
    assert {"8-bit Adam", "DeepSpeed optimizer offload", "FSDP over 8 GPUs", "optimizer in backward"} < {*names}
    assert not [name for name in names if "4-bit" in name]
    names = [name for name, _ in single_changes(CustomTraining("open-llama-7b", "a100_80gb", loop="litgpt"))]
    assert not [name for name in names if "FSDP" in name or "DeepSpeed" in name]


def test_only_several_ranks_and_deepspeed_need_a_launcher():
    commands = [
        program_command(CustomTraining("tiny-llama-1.1b", "24GiB", loop="lightning", **options))
        for options in ({}, {"devices": 2}, {"strategy": "deepspeed_stage_3_offload"})
    ]
    assert [command[0] for command in commands] == ["python", "torchrun", "torchrun"]
