"""Vision-language models are trained on a text with an image: each type on its image for a step, on the CPU."""

import json
from typing import Any

import pytest
import torch

from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command
from experiments.prediction.loops.build import build_model
from experiments.prediction.loops.images import IMAGE_MAKERS, count_image_tokens
from experiments.prediction.loops.job import LoopJob
from experiments.prediction.loops.packing import IGNORED_LABEL, make_batch
from experiments.prediction.loops.samples import describe_sample, make_sample
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import trace_script
from experiments.prediction.script.traced import stated

TOKENS, IMAGE_TOKEN = 12, 9
TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder")
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 200}
VISION: dict[str, Any] = {**SIZES, "image_size": 28, "patch_size": 7}
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
GRID_TEXT: dict[str, Any] = {**TEXT, "rope_parameters": ROTARY}
GRID_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "embed_dim": 32,
    "num_heads": 2,
    "patch_size": 4,
    "intermediate_size": 64,
    "out_hidden_size": 32,
}
DEEP_VISION = {**GRID_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
TILES = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]}
PERCEIVER = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
GOT_VISION = {"image_size": 128, "patch_size": 16, "mlp_dim": 64, "output_channels": 16, "global_attn_indexes": [1]}
LLAMA4_VISION = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
MLLAMA_VISION = {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 96}


def model(text: str = "", vision: str = "", of_text: Any = TEXT, of_vision: Any = VISION, **others: Any) -> Any:
    """Return a tiny configuration with these types and sizes of its parts. others: more keys."""
    types = {"model_type": text} if text else {}, {"model_type": vision} if vision else {}
    return {"text_config": types[0] | of_text, "vision_config": types[1] | of_vision, **others}


MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "llava": (model("llama", "clip_vision_model"), 16),
    "vipllava": (model("llama", "clip_vision_model", vision_feature_layers=[-2, -1]), 16),
    "llava_next": (model("llama", "clip_vision_model", **TILES), 88),
    "llava_next_video": (model("llama", "clip_vision_model", **TILES), 88),
    "llava_onevision": (model("qwen2", "siglip_vision_model", **TILES), 88),
    "gemma3": (model(mm_tokens_per_image=4), 4),
    "paligemma": (model("gemma", "siglip_vision_model", projection_dim=32), 16),
    "aya_vision": (model("cohere2", "siglip_vision_model"), 4),
    "cohere2_vision": (model("cohere2", "siglip_vision_model", alignment_intermediate_size=64), 4),
    "internvl": (model("qwen2", of_vision=VISION | {"image_size": [28, 28], "patch_size": [7, 7]}), 4),
    "got_ocr2": (model("qwen2", of_vision=SIZES | GOT_VISION | {"window_size": 4}), 4),
    "janus": (model("llama", of_vision=VISION | {"projection_dim": 32}), 16),
    "deepseek_vl": (model("llama", "siglip_vision_model"), 16),
    "llama4": (
        model(
            of_text=TEXT | {"intermediate_size_mlp": 64, "num_local_experts": 2},
            of_vision=VISION | LLAMA4_VISION | {"intermediate_size": 128},
        ),
        4,
    ),
    "mistral3": (model("mistral", "pixtral", of_vision=VISION | {"head_dim": 16}), 4),
    "lighton_ocr": (model("qwen3", "pixtral", of_vision=VISION | {"head_dim": 16}), 4),
    "idefics2": (
        model("mistral", perceiver_config=PERCEIVER | {"resampler_head_dim": 16, "num_key_value_heads": 1}),
        4,
    ),
    "idefics3": (model("llama"), 17 * 4),
    "smolvlm": (model("llama"), 17 * 4),
    "qwen2_vl": (model(of_text=GRID_TEXT, of_vision=GRID_VISION | {"mlp_ratio": 2}), 256),
    "qwen2_5_vl": (model(of_text=GRID_TEXT, of_vision=GRID_VISION | {"fullatt_block_indexes": [1]}), 256),
    "qwen3_vl": (model(of_text=GRID_TEXT, of_vision=DEEP_VISION), 256),
    "qwen3_vl_moe": (
        model(
            of_text=GRID_TEXT | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
            of_vision=DEEP_VISION,
        ),
        256,
    ),
    "qwen3_5": (
        model(
            of_text=GRID_TEXT
            | LINEAR
            | {"layer_types": ["linear_attention", "full_attention"], "linear_value_head_dim": 16},
            of_vision=GRID_VISION | {"num_position_embeddings": 64},
        ),
        256,
    ),
    "glm4v": (model(of_text=GRID_TEXT, of_vision=GRID_VISION | {"image_size": 128}), 256),
    "mllama": (
        model(
            of_text=TEXT | {"cross_attention_layers": [1], "pad_token_id": 0},
            of_vision=VISION | MLLAMA_VISION | {"intermediate_layers_indices": [0, 1]},
        ),
        1,
    ),
}
"""Configuration and number of image tokens by model type."""
WITHOUT_IMAGE = model("aria_text", of_vision=VISION, of_text=TEXT | {"moe_num_experts": 2, "moe_topk": 1})


def configuration(name: str) -> dict[str, Any]:
    sizes = MODELS[name][0] if name in MODELS else WITHOUT_IMAGE
    return {"model_type": name, "image_token_index": IMAGE_TOKEN, "image_token_id": IMAGE_TOKEN, **sizes}


def job(name: str, **options: Any) -> LoopJob:
    architecture = {"family": "transformers", "architecture": configuration(name)}
    return LoopJob.model_validate({"model": architecture, "seq": TOKENS, **options})


def test_each_type_is_tested():
    assert {*MODELS} == {*IMAGE_MAKERS}


@pytest.mark.parametrize("name", MODELS)
def test_the_vision_tower_runs_and_the_image_s_tokens_are_in_the_text(name):
    asked, expected = job(name, batch=2), MODELS[name][1]
    built = build_model(asked).train()
    towers = [part for path, part in built.named_modules() if path.rpartition(".")[2] in TOWERS]
    runs: list[str] = []
    towers[0].register_forward_hook(lambda *_: runs.append(name))
    sample = make_sample(built, asked)
    assert count_image_tokens(built.config, sample) == len(sample["input_ids"]) - TOKENS == expected
    assert (sample["labels"] == IGNORED_LABEL).sum() == expected
    loss = built(**make_batch([sample] * 2, asked)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert runs == [name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llava", "a text of 28 tokens (16 of them for the image) and an image of 28 x 28 pixels"),
        ("llava_next", "a text of 100 tokens (88 of them for the image) and an image of 56 x 56 pixels"),
        ("idefics3", "a text of 80 tokens (68 of them for the image) and an image of 112 x 112 pixels"),
        ("qwen2_vl", "a text of 268 tokens (256 of them for the image) and an image of 128 x 128 pixels"),
        ("mistral3", "a text of 16 tokens (4 of them for the image) and an image of 28 x 28 pixels"),
        ("mllama", "a text of 13 tokens (1 of them for the image) and an image of 56 x 56 pixels"),
    ],
)
def test_a_sample_with_an_image_is_described_with_the_image_s_tokens(name, words):
    built = build_model(job(name))
    assert describe_sample(make_sample(built, job(name)), built.config, job(name)) == words


def test_by_default_text_and_image_have_at_most_as_many_tokens_as_the_model_has_positions():
    asked = job("llava", seq=None)
    asked.model.architecture["text_config"]["max_position_embeddings"] = 40
    assert len(make_sample(build_model(asked), asked)["input_ids"]) == 40


def test_for_a_type_without_an_image_a_note_says_that_the_peak_is_too_low(monkeypatch):
    monkeypatch.setattr(stated, "_NOTES", {})
    make_sample(build_model(job("llava")), job("llava"))
    assert stated.stated_notes() == []
    for _ in range(2):
        assert "pixel_values" not in make_sample(build_model(job("aria")), job("aria"))
    (note,) = stated.stated_notes()
    assert note.startswith("aria: the texts have no image")
    assert note.endswith("the peak is too low")


@pytest.fixture
def traced(tmp_path, capfd, traces_start_warm):
    """Return the prediction for the first GPU of a training, or a text generation, of a tiny model."""

    def trace(name, **options):
        (tmp_path / "tiny.json").write_text(json.dumps(configuration(name)))
        training = CustomTraining(str(tmp_path / "tiny.json"), "a100_80gb", seq=TOKENS, **options)
        script_options = ScriptOptions(gpus=training.gpus_per_process)
        first, *_ = trace_script(program_command(training), [training.card], lambda _: None, script_options)
        capfd.readouterr()
        return first

    return trace


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "qwen2_vl"])
def test_memory_of_the_vision_tower_is_in_the_prediction(traced, name):
    found = traced(name, loop="plain")
    assert f"({MODELS[name][1]} of them for the image)" in found.sample
    assert any(tower in one.module for one in found.modules for tower in TOWERS)
    assert not any("no image" in note for note in found.notes)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_prompt_with_an_image_is_continued_on_one_gpu_and_on_two(traced, devices):
    found = traced("qwen2_vl", task="generate", new_tokens=2, devices=devices)
    assert "(256 of them for the image)" in found.sample


@pytest.mark.parametrize(("name", "loop"), [("aria", "trainer"), ("gemma3", "lightning")])
def test_a_prediction_without_an_image_has_a_note(traced, name, loop):
    assert any(note.startswith(f"{name}: the texts have no image") for note in traced(name, loop=loop).notes)
