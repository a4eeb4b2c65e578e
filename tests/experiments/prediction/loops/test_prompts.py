"""Text generation of encoder-decoder models and of models that describe images and sounds."""

import json
import tempfile
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import trace_script

WIDTH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {"model_type": "bert", "vocab_size": 200, **WIDTH}
DECODER = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 200}
PARTS: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
PARTS |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
WHISPER: dict[str, Any] = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], **PARTS}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "t5": ({"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 200}, "a prompt of"),
    "bart": ({**PARTS, "vocab_size": 200, "architectures": ["BartForConditionalGeneration"]}, "a prompt of 9 tokens"),
    "whisper": (WHISPER, "a spectrum of 80 x 3000"),
    "speech_to_text": ({**PARTS, "vocab_size": 200}, "a spectrum of 1000 x 80"),
    "vision-encoder-decoder": (
        {
            "encoder": {"model_type": "vit", "image_size": 32, **WIDTH},
            "decoder": {**DECODER, "is_decoder": True, "add_cross_attention": True},
            "architectures": ["VisionEncoderDecoderModel"],
        },
        "an image of 32 x 32 pixels",
    ),
    "encoder-decoder": (
        {
            "encoder": {"model_type": "bert", "vocab_size": 200, **WIDTH},
            "decoder": {
                "model_type": "bert",
                "vocab_size": 200,
                "is_decoder": True,
                "add_cross_attention": True,
                **WIDTH,
            },
            "architectures": ["EncoderDecoderModel"],
        },
        "a prompt of 9 tokens",
    ),
    "blip": (
        {
            "text_config": {
                "vocab_size": 200,
                "bos_token_id": 1,
                "sep_token_id": 2,
                "encoder_hidden_size": 32,
                **WIDTH,
            },
            "vision_config": {"image_size": 32, **WIDTH},
            "architectures": ["BlipForConditionalGeneration"],
        },
        "a text of 9 tokens and an image of 32 x 32 pixels",
    ),
}


def predict(path, config, **options):
    path.write_text(json.dumps(config))
    asked = CustomTraining(str(path), "a100_80gb", **options)
    return trace_script(program_command(asked), [asked.card], lambda _: None, ScriptOptions())


@pytest.mark.parametrize("kind", MODELS)
def test_each_kind_of_prompt_gives_a_prediction(tmp_path, capfd, traces_start_warm, kind):
    config, prompt = MODELS[kind]
    data = {"model_type": kind, **config}
    (found,) = predict(tmp_path / "model.json", data, task="generate", seq=9, new_tokens=5, batch=2)
    capfd.readouterr()
    assert found.sample.startswith(prompt)
    assert (found.ended, found.steps) == ("ended", 0)
    assert found.at_peak.params_gib > 0


@pytest.mark.parametrize("kind", ["encoder-decoder", "vision-encoder-decoder"])
def test_models_of_two_parts_without_special_tokens_can_be_trained(tmp_path, capfd, traces_start_warm, kind):
    (found,) = predict(tmp_path / "model.json", {"model_type": kind, **MODELS[kind][0]}, seq=9)
    capfd.readouterr()
    assert found.steps == 2


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            {"model_type": "pix2struct", "architectures": ["Pix2StructForConditionalGeneration"]},
            {},
            "Pix2StructForConditionalGeneration: unknown inputs (flattened_patches, attention_mask",
        ),
        (WHISPER, {"new_tokens": 448}, "--new-tokens 448: the decoder of WhisperForConditionalGeneration has 448 pos"),
        (
            {"model_type": "musicgen", "text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}}
            | {"decoder": {"model_type": "musicgen_decoder"}, "architectures": ["MusicgenForConditionalGeneration"]},
            {},
            "model_type = 'musicgen': has several text models; supported: models with one",
        ),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"], **WIDTH}, {}, "ViTForImageClassificat"),
    ],
)
def test_what_generation_does_not_support_is_named(tmp_path, capfd, traces_start_warm, config, options, message):
    with pytest.raises(InputError) as caught:
        predict(tmp_path / "model.json", config, task="generate", **options)
    assert str(caught.value).startswith(message)
    assert "Traceback" not in capfd.readouterr().err


def test_a_script_that_transcribes_sounds_is_predicted(tmp_path, capfd, traces_start_warm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {name: value for name, value in WHISPER.items() if name not in ("model_type", "architectures")}
    (tmp_path / "transcribe.py").write_text(f"""
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
model = WhisperForConditionalGeneration(WhisperConfig(**{options})).cuda()
texts = model.generate(torch.randn(2, 80, 3000, device="cuda"), max_new_tokens=6)
open("found", "w").write(f"{{texts.shape[1] >= 6}} {{texts.device.type}}")
""")
    trace_script(["python", "transcribe.py"], ["a100_80gb"], lambda _: None, ScriptOptions())
    capfd.readouterr()
    assert (tmp_path / "found").read_text() == "True cuda"


@pytest.mark.parametrize("loop", ["trainer", "lightning"])
def test_a_traced_loop_leaves_no_temporary_folder(tmp_path, capfd, traces_start_warm, monkeypatch, loop):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    data = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 1, "n_head": 2}
    (found,) = predict(tmp_path / "model.json", data, seq=9, loop=loop)
    capfd.readouterr()
    assert found.steps == 2
    assert list((tmp_path / "temporary").glob("llm-testbed-*")) == []
