"""Published weights in LitGPT's engines: a small LLaMA saved by transformers and registered with LitGPT."""

import multiprocessing
import os
import signal

import pytest
import torch
from huggingface_hub import constants
from litgpt import config as litgpt_config
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.errors import InputError
from experiments.inputs.requirements import Artifact
from experiments.suites.models import models
from experiments.training import rank
from experiments.training.data import litgpt_checkpoint
from experiments.training.data.fetch_hub import fetch_artifact
from experiments.training.measure.probe import Probe
from experiments.training.models.litgpt import LORA_TARGETS
from tests.support.services.fake_hub import COMMIT
from tests.support.training.tiny_rows import LLAMA, LORA, spec

NAME = "small-llama"
SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "intermediate_size": 96, "vocab_size": 100}
ENGINES = ("litgpt", "litgpt_trainer")
ADAPTED = LORA | {"targets": list(LORA_TARGETS)}


@pytest.fixture
def published_model(tmp_path, monkeypatch):
    """A model saved by transformers, with its sizes registered in LitGPT."""
    known = litgpt_config.name_to_config[models()[LLAMA].litgpt]
    monkeypatch.setitem(litgpt_config.name_to_config, NAME, known | SIZES | {"name": NAME, "padded_vocab_size": 100})
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=100,
            rms_norm_eps=known["norm_eps"],
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(tmp_path / "published")
    return model.eval()


@pytest.fixture
def base_model(published_model, tmp_path):
    changes = {"hub": str(tmp_path / "published"), "litgpt": NAME, "architecture": published_model.config.to_dict()}
    return models()[LLAMA].model_copy(update=changes)


@pytest.fixture
def first_logits(monkeypatch):
    """The first logits of each model that the probe watches."""
    logits = []
    watch = Probe.set_model

    def watch_logits(probe, model, optimizers):
        with torch.inference_mode():
            logits.append(model(torch.arange(20)[None]).float())
        watch(probe, model, optimizers)

    monkeypatch.setattr(Probe, "set_model", watch_logits)
    return logits


def row(base_model, engine, **changes):
    settings = {"engine": engine, "dataset": "constant", "max_length": 24, "warmup_steps": 1, "train_samples": 4}
    return spec(own=base_model, size="full", weights="pretrained", **settings | changes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("lora", [None, ADAPTED])
def test_a_row_starts_with_the_published_weights(published_model, base_model, first_logits, tmp_path, engine, lora):
    measured = rank.run_rank(row(base_model, engine, lora=lora), tmp_path)
    assert measured.reason.startswith("fits")
    with torch.inference_mode():
        expected = published_model(torch.arange(20)[None]).logits
    assert torch.allclose(first_logits[0], expected, atol=1e-4)
    assert expected.std() > 0.01


def test_weights_from_the_hub_have_a_commit_and_local_weights_have_none(base_model, web, tmp_path):
    assert litgpt_checkpoint.litgpt_checkpoint(base_model).commit is None
    web.repos["models/team/small"] = tmp_path / "published"
    on_hub = base_model.model_copy(update={"hub": "team/small"})
    for engine in ENGINES:
        assert rank.run_rank(row(on_hub, engine), tmp_path).weights_commit == COMMIT
    assert web.downloads["model.safetensors"] == 1
    assert {path.name for path in (tmp_path / "cache" / "litgpt").glob(f"*-{COMMIT}")} == {f"{NAME}-{COMMIT}"}


def test_a_converted_checkpoint_is_used_without_the_hub(base_model, web, tmp_path, monkeypatch):
    web.repos["models/team/small"] = tmp_path / "published"
    *_, checkpoint = fetch_artifact(Artifact(kind="weights", name="team/small", litgpt=NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(litgpt_checkpoint, "convert_hf_checkpoint", None)
    on_hub = base_model.model_copy(update={"hub": "team/small"})
    assert litgpt_checkpoint.litgpt_checkpoint(on_hub).folder == checkpoint
    assert rank.run_rank(row(on_hub, "litgpt"), tmp_path).weights_commit == COMMIT


def test_weights_are_converted_once_and_converted_again_after_they_changed(base_model, monkeypatch, tmp_path):
    converted = []
    monkeypatch.setattr(
        litgpt_checkpoint,
        "convert_hf_checkpoint",
        lambda *given, **named: converted.append(1) or convert_hf_checkpoint(*given, **named),
    )
    first, again = (litgpt_checkpoint.litgpt_checkpoint(base_model) for _ in range(2))
    assert (first, len(converted)) == (again, 1)
    os.utime(tmp_path / "published" / "model.safetensors", ns=(0, 0))
    assert litgpt_checkpoint.litgpt_checkpoint(base_model) != first
    assert len(converted) == 2


def test_a_killed_conversion_is_repeated(base_model, monkeypatch):
    def die(folder, model_name):
        (folder / litgpt_checkpoint.WEIGHTS_FILE).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(litgpt_checkpoint, "convert_hf_checkpoint", die)
        killed = multiprocessing.get_context("fork").Process(
            target=litgpt_checkpoint.litgpt_checkpoint, args=(base_model,)
        )
        killed.start()
        killed.join()
    assert killed.exitcode == -signal.SIGKILL
    checkpoint = litgpt_checkpoint.litgpt_checkpoint(base_model).folder
    assert (checkpoint / litgpt_checkpoint.WEIGHTS_FILE).stat().st_size > 0


def test_weights_that_cannot_be_converted_are_rejected_and_leave_nothing(base_model, tmp_path):
    (tmp_path / "published" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"published: LitGPT cannot convert these weights to small-llama \(Expected"):
        litgpt_checkpoint.litgpt_checkpoint(base_model)
    assert [path.suffix for path in (tmp_path / "cache" / "litgpt").iterdir()] == [".lock"]


def test_weights_that_cannot_be_downloaded_are_rejected(base_model, web):
    with pytest.raises(InputError, match=r"^the weights of 'a/b' cannot be loaded \(404 .*\); weights=random"):
        litgpt_checkpoint.litgpt_checkpoint(base_model.model_copy(update={"hub": "a/b"}))
