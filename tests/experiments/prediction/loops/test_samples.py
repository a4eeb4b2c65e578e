"""Training samples for models of all kinds: each model is trained on its sample for a step, on the CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.errors import InputError
from experiments.prediction.loops import job as jobs
from experiments.prediction.loops.build import build_model
from experiments.prediction.loops.job import LoopJob, LoopLora
from experiments.prediction.loops.samples import describe_sample, make_sample

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
PAIR = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60}
PAIR |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
SOUND = {
    **TEXT,
    "vocab_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
EXPERTS = {"num_key_value_heads": 1, "num_local_experts": 2, "head_dim": 8}
MODELS: dict[str, Any] = {
    "wav2vec2": SOUND,
    "hubert": SOUND,
    "speech_to_text": {**PAIR, "max_source_positions": 1000, "num_conv_layers": 1, "conv_kernel_sizes": [5]},
    "audio-spectrogram-transformer": {**TEXT, "max_length": 64},
    "whisper": {**PAIR, "decoder_start_token_id": 1, "max_source_positions": 50, "pad_token_id": 0},
    "t5": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 40},
    "bert": TEXT,
    "mixtral": {**TEXT, **EXPERTS},
    "gemma2": {**TEXT, "num_key_value_heads": 1, "head_dim": 8},
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40},
    "vit": {**TEXT, "image_size": 32, "patch_size": 16},
    "clip": {
        "architectures": ["CLIPModel"],
        "projection_dim": 16,
        "text_config": {**TEXT, "max_position_embeddings": 16},
        "vision_config": {**TEXT, "image_size": 32, "patch_size": 16},
    },
    "blip": {
        "text_config": {**TEXT, "encoder_hidden_size": 16},
        "vision_config": {**TEXT, "image_size": 32, "patch_size": 16},
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_any_kind_is_trained_on_its_sample(name):
    model = build_model(job(name)).train()
    one = make_sample(model, job(name))
    loss = model(**{key: torch.stack([value] * 2) for key, value in one.items()}).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bert", "a text of 12 tokens"),
        ("t5", "a text of 12 tokens for the encoder and a text of 6 tokens for the decoder"),
        ("vit", "an image of 32 x 32 pixels"),
        ("wav2vec2", "a sound of 160000 values (10 s) and a transcript of 6 tokens"),
        ("whisper", "a spectrum of 80 x 100 and a text of 6 tokens for the decoder"),
        ("audio-spectrogram-transformer", "a spectrum of 64 x 128"),
        ("blip", "a text of 12 tokens and an image of 32 x 32 pixels"),
        ("clip", "a text of 12 tokens and an image of 32 x 32 pixels"),
    ],
)
def test_a_sample_is_described_by_what_it_is(name, words):
    model = build_model(job(name))
    assert describe_sample(make_sample(model, job(name)), model.config, job(name)) == words


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("bert", {**TEXT, "max_position_embeddings": 77}, "a text of 77 tokens (the model's maximum)"),
        ("bert", TEXT, "a text of 512 tokens"),
        ("clip", MODELS["clip"], "a text of 16 tokens (the model's maximum) and an image of 32 x 32 pixels"),
    ],
)
def test_a_text_has_by_default_at_most_as_many_tokens_as_the_model_has_positions(name, config, words):
    asked = LoopJob.model_validate(
        {"model": {"family": "transformers", "architecture": {"model_type": name, **config}}}
    )
    model = build_model(asked)
    assert describe_sample(make_sample(model, asked), model.config, asked) == words


def test_a_model_for_segmentation_is_trained_on_a_class_for_each_pixel():
    sizes = {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [16], "patch_sizes": [7]}
    sizes |= {"strides": [4], "num_attention_heads": [1], "mlp_ratios": [1], "decoder_hidden_size": 16}
    model = {"family": "transformers", "architecture": {"model_type": "segformer", **sizes}}
    asked = LoopJob.model_validate({"model": model, "model_class": "SegformerForSemanticSegmentation"})
    sample = make_sample(build_model(asked), asked)
    assert sample["labels"].shape == sample["pixel_values"].shape[1:]


def test_a_detector_is_rejected_with_the_reason():
    model = {"family": "transformers", "architecture": {"model_type": "yolos"}}
    with pytest.raises(InputError, match=r"^YolosForObjectDetection: its loss checks and matches boxes by"):
        build_model(LoopJob.model_validate({"model": model}))


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
@pytest.mark.parametrize("fsdp", [None, 1, 2])
def test_only_fsdp_of_version_1_rejects_adapters_of_experts(targets, fsdp):
    asked = job("mixtral").model_copy(update={"fsdp": fsdp, "lora": LoopLora(r=4, targets=targets)})
    if fsdp == 1 and targets == "all-linear":
        with pytest.raises(InputError, match=r"strategy fsdp: .* allowed: ddp, fsdp2, or adapters of other layers"):
            build_model(asked)
    else:
        assert build_model(asked).get_nb_trainable_parameters()[0] > 0


def test_an_error_of_a_library_is_summarized_in_one_line_after_its_traceback(monkeypatch, capsys):
    def train(_):
        raise RuntimeError("a leaf Variable\nis used")

    monkeypatch.setattr(jobs, "sys", SimpleNamespace(argv=["", job("bert").model_dump_json()]))
    with pytest.raises(InputError, match=r"bert: does not run with these settings \(RuntimeError: a leaf Variable\)"):
        jobs.run_program(train)
    assert "Traceback" in capsys.readouterr().err


def job(name: str) -> LoopJob:
    model = {"family": "transformers", "architecture": {"model_type": name, **MODELS[name]}}
    return LoopJob.model_validate({"model": model, "seq": 12, "target_seq": 6})
