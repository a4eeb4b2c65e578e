"""Packed texts in the loops of `testbed predict --model`: batches, what attends to what, memory and errors."""

import json
from importlib.util import find_spec
from shutil import which
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import build_job, describe_training, program_command, single_changes, trace_options
from experiments.prediction.script import trace
from experiments.prediction.script.trace import trace_script
from experiments.system.files import GIB
from tests.experiments.prediction.loops.test_generate import CONFIG

torch = pytest.importorskip("torch")
MODEL = ("--model", "tiny-llama-1.1b", "--card", "a100_80gb")
BATCH, TOKENS, TEXTS = 2, 2048, 8
LONG = CONFIG | {"max_position_embeddings": TOKENS, "num_hidden_layers": 2}
MASK_GIB = BATCH * TOKENS * TOKENS * 2 / GIB
"""A mask of the attention in 16 bit: which of a row's tokens attend to which."""


def batch_of(**options):
    """Return the batch of two samples with these options."""
    from experiments.prediction.loops.packing import make_batch

    job = build_job(CustomTraining("tiny-llama-1.1b", card="a100_80gb", batch=2, **options))
    samples = [{"input_ids": torch.arange(10, 20) + 10 * row} for row in range(2)]
    return make_batch([{**one, "labels": one["input_ids"].clone()} for one in samples], job)


def test_without_packing_samples_are_stacked_and_have_no_positions():
    batch = batch_of()
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[*range(10, 20)], [*range(20, 30)]]


@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_packed_texts_fill_each_row_and_their_positions_restart(attention):
    batch = batch_of(packing=3, attention=attention)
    assert batch["input_ids"].tolist() == [[*range(10, 20)], [*range(20, 30)]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]] * 2
    assert batch["labels"].tolist()[0] == [-100, 11, 12, 13, -100, 15, 16, -100, 18, 19]


def test_with_flash_attention_the_whole_batch_is_one_row():
    batch = batch_of(packing=3, attention="flash_attention_2", precision="bf16-true")
    assert batch["input_ids"].tolist() == [[*range(10, 30)]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2] * 2]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 4, 7, 10, 14, 17, 20]
    assert (batch["max_length_q"], batch["max_length_k"]) == (4, 4)
    assert (batch["labels"][0] == -100).nonzero().flatten().tolist() == [0, 4, 7, 10, 14, 17]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_texts_do_not_attend_to_each_other(attention):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    sizes |= {"vocab_size": 40, "attn_implementation": attention, "use_cache": False}
    config = LlamaConfig(**sizes)
    model = LlamaForCausalLM(config).eval()
    batch = batch_of(packing=2, attention=attention)
    with torch.no_grad():
        packed = model(**batch).logits[0, 5:]
        alone = model(batch["input_ids"][:1, 5:]).logits[0]
        mixed = model(batch["input_ids"][:1]).logits[0, 5:]
    assert torch.allclose(packed, alone, atol=1e-5)
    assert not torch.allclose(mixed, alone, atol=1e-5)


@pytest.mark.parametrize("command", ["predict", "fit"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--packing", "0"), "--packing 0: allowed: a whole number above 0"),
        (("--packing", "600"), "--packing 600: a sequence has 512 tokens; allowed: 1 to 512"),
        (("--packing", "9", "--seq", "8"), "--packing 9: a sequence has 8 tokens; allowed: 1 to 8"),
        (
            ("--packing", "2", "--seq", "4097"),
            "--seq 4097 --packing 2: tiny-llama-1.1b has 2048 positions; allowed: 1 to 4096",
        ),
        (("--packing", "2", "--task", "generate"), "--packing 2: not allowed with --task generate"),
        (("--packing", "2", "--loop", "litgpt"), "--packing 2: allowed with --loop trainer, plain; not with litgpt"),
        (("--packing", "2", "--loop", "lightning"), "allowed with --loop trainer, plain; not with lightning"),
    ],
)
def test_an_error_with_packing_names_the_value_and_what_is_allowed(monkeypatch, command, arguments, message, capsys):
    monkeypatch.setattr(trace, "trace_script", lambda *_: pytest.fail("traced"))
    assert main([command, *MODEL, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_row_can_have_more_tokens_than_the_model_has_positions():
    training = CustomTraining("tiny-llama-1.1b", card="a100_80gb", seq=4096, packing=2)
    assert build_job(training).packing == 2
    assert all(one.packing == 2 for _, one in single_changes(training) if one.loop == "trainer")


@pytest.fixture
def predict(tmp_path, capfd, traces_start_warm):
    path = tmp_path / "config.json"

    def trace_training(config=LONG, **options):
        path.write_text(json.dumps(config))
        values: dict[str, Any] = {"batch": BATCH, "seq": TOKENS, "precision": "bf16-true", "loop": "plain"} | options
        training = CustomTraining(str(path), card="h200_141gb", **values)
        words = program_command(training)
        (found,) = trace_script(words, [training.card], lambda _: None, trace_options(training))
        assert f"each {found.sample}" in describe_training(training, found.sample)
        capfd.readouterr()
        return found

    return trace_training


needs_device = pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler")


@needs_device
@pytest.mark.parametrize("loop", ["plain", "trainer"])
def test_pytorchs_attention_needs_a_mask_for_packed_texts(predict, loop):
    whole, packed = predict(loop=loop), predict(loop=loop, packing=TEXTS)
    assert packed.at_peak.activations_gib - whole.at_peak.activations_gib > MASK_GIB
    assert packed.sample == f"a row of {TEXTS} texts with {TOKENS} tokens"


@needs_device
def test_flash_attention_needs_no_mask_and_little_more_for_many_short_texts(predict):
    peaks = [predict(attention="flash_attention_2", packing=texts).peak_gib for texts in (None, 1, TEXTS, TOKENS // 8)]
    whole, *_, many = peaks
    assert max(peaks[:3]) < 1.01 * whole
    assert 1.01 * whole < many < 1.5 * whole


@needs_device
def test_texts_for_an_encoder_are_not_packed(predict, capfd):
    config = {"model_type": "t5", "d_model": 64, "num_layers": 1, "num_heads": 2, "d_kv": 32, "vocab_size": 100}
    with pytest.raises(Exception, match="--packing 2: T5ForConditionalGeneration cannot tell packed texts apart"):
        predict(config, packing=2, seq=64)
