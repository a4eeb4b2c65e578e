"""Make a training sample for any model, with texts, images and sounds of the sizes in its configuration."""

from typing import Any

import torch

from experiments.errors import InputError
from experiments.prediction.custom import DEFAULT_TOKENS
from experiments.prediction.loops.build import input_names
from experiments.prediction.loops.images import (
    NO_IMAGE,
    add_image,
    count_image_tokens,
    describe_image,
    image_labels,
)
from experiments.prediction.loops.job import LoopJob
from experiments.prediction.loops.packing import Sample, reject_unpackable
from experiments.prediction.script.traced.stated import state_note, state_sample
from provision.words import number_with_noun

SOUND_SECONDS, SOUND_SAMPLES_PER_S = 10, 16_000
SPECTRUM_FRAMES, TRANSCRIPT_TOKENS = 1000, 32
FIRST_TOKEN_ID, END_TOKEN_ID = 5, 1000
"""Random token ids are at least the first number and below the second one."""
IMAGE_INPUTS = ("pixel_values", "image_patches", "flattened_patches")
"""What the names of inputs for images begin with."""
IMAGE_MODEL_TYPES = ("blip", "blip-2", "git")
"""Models that get a text and an image. Other models get both if they have return_loss, or are in IMAGE_MAKERS."""


def make_sample(model: Any, job: LoopJob) -> Sample:
    """Return one sample without a batch dimension. Raises InputError for unknown inputs or a missing loss."""
    config, names = model.config, input_names(model)
    model_class = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    class_name = model_class.__name__
    inputs = _make_supported_inputs(config, names, job, model_class, "training")
    if "labels" in names:
        inputs["labels"] = _make_labels(config, class_name, inputs, job)
    elif {"start_positions", "end_positions"} <= set(names):
        inputs |= {"start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
    elif "return_loss" not in names:
        raise InputError(
            f"{class_name}: has no loss; use --model-class with a class that has one, such as a ForCausalLM class"
        )
    reject_unpackable(inputs, class_name, names, job)
    return inputs


def make_prompt(model: Any, job: LoopJob) -> tuple[Sample, str]:
    """Return one prompt for text generation without a batch dimension, and a description of it.

    The prompt is what the model continues or describes: a text, an image, an image with a text, or a sound. Raises
    InputError for unknown inputs.
    """
    config = model.config
    inputs = _make_supported_inputs(config, input_names(model), job, type(model), "generation", job.new_tokens)
    if list(inputs) == ["input_ids"]:
        return inputs, f"a prompt of {len(inputs['input_ids'])} tokens"
    return inputs, describe_sample(inputs, config, job)


def make_stated_sample(model: Any, job: LoopJob) -> Sample:
    """Return the sample of ``make_sample``, and record its description in words for the output of the prediction."""
    sample = make_sample(model, job)
    state_sample(describe_sample(sample, model.config, job))
    return sample


def _make_supported_inputs(
    config: Any, names: list[str], job: LoopJob, model_class: Any, purpose: str, reserved_positions: int = 0
) -> Sample:
    """Return those inputs in ``names`` that this module can make. Raises InputError if there are none.

    purpose: training or generation, for the message. reserved_positions: see ``text_tokens``.
    """
    if not (inputs := _make_inputs(config, names, job, reserved_positions)):
        raise InputError(
            f"{model_class.__name__}: unknown inputs ({', '.join(names[:4])}); supported: texts (input_ids), images "
            f"(pixel_values) and sounds (input_features, input_values); write a {purpose} script and trace it with "
            "`testbed predict -- python FILE`"
        )
    sees_images = "input_ids" in names and any(name.startswith(IMAGE_INPUTS) for name in names)
    if sees_images and "pixel_values" not in inputs and not job.packing:
        positions = None if job.seq else _position_count(config)
        if not add_image(model_class, config, names, inputs, positions and positions - reserved_positions):
            state_note(NO_IMAGE.format(config.model_type))
    return inputs


def _make_inputs(config: Any, names: list[str], job: LoopJob, reserved_positions: int) -> Sample:
    inputs: Sample = {}
    if "input_ids" in names:
        inputs["input_ids"] = make_text(text_tokens(config, job, reserved_positions), config)
    if "pixel_values" in names and "input_ids" not in names:
        inputs["pixel_values"] = _make_image(getattr(config, "encoder", config))
    if "pixel_values" in names and ("return_loss" in names or config.model_type in IMAGE_MODEL_TYPES):
        inputs["pixel_values"] = _make_image(config.vision_config)
    if config.model_type == "blip-2":
        if config.image_token_index is None:
            config.image_token_index = _text_config(config).vocab_size - 1
        image_tokens = torch.full((config.num_query_tokens,), config.image_token_index)
        inputs["input_ids"] = torch.cat([image_tokens, inputs["input_ids"]])
    if "input_features" in names:
        inputs["input_features"] = _make_spectrum(config)
    if "input_values" in names:
        inputs["input_values"] = _make_sound(config)
    return inputs


def _make_spectrum(config: Any) -> torch.Tensor:
    """Return the spectrum of a sound: (bands, frames) for Whisper, (frames, bands) for other models."""
    if not hasattr(config, "num_mel_bins"):
        return torch.randn(SPECTRUM_FRAMES, config.input_feat_per_channel)
    return torch.randn(config.num_mel_bins, 2 * config.max_source_positions)


def _make_sound(config: Any) -> torch.Tensor:
    if hasattr(config, "max_length"):
        return torch.randn(config.max_length, config.num_mel_bins)
    return torch.randn(SOUND_SECONDS * SOUND_SAMPLES_PER_S)


def _make_image(config: Any) -> torch.Tensor:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(getattr(config, "num_channels", 3), height, width)


def _make_labels(config: Any, class_name: str, inputs: Sample, job: LoopJob) -> torch.Tensor:
    if "SemanticSegmentation" in class_name:
        return torch.ones(inputs["pixel_values"].shape[-2:], dtype=torch.int64)
    if "Classification" in class_name and "Token" not in class_name:
        return torch.tensor(1)
    if config.is_encoder_decoder or class_name.endswith("ForCTC"):
        default_tokens = text_tokens(config, job) if "input_ids" in inputs else TRANSCRIPT_TOKENS
        return make_text(job.target_seq or default_tokens, config)
    if "input_ids" not in inputs:
        return torch.tensor(1)
    if count_image_tokens(config, inputs):
        return image_labels(config, inputs["input_ids"])
    return inputs["input_ids"].clone()


def text_tokens(config: Any, job: LoopJob, reserved_positions: int = 0) -> int:
    """Return the number of tokens of a text.

    The number is ``job.seq``, or DEFAULT_TOKENS, or less than DEFAULT_TOKENS if the model has fewer positions.
    reserved_positions: positions that the text must leave free, such as those of generated tokens.
    """
    positions = _position_count(config)
    longest = DEFAULT_TOKENS if positions is None else positions - reserved_positions
    return job.seq or max(1, min(DEFAULT_TOKENS, longest))


def _position_count(config: Any) -> int | None:
    positions = getattr(_text_config(config), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def _text_config(config: Any) -> Any:
    """Return the configuration of the model's text part. Raises InputError if there are several."""
    try:
        return config.get_text_config()
    except ValueError:
        raise InputError(
            f"model_type = {config.model_type!r}: has several text models; supported: models with one; write a script "
            "and trace it with `testbed predict -- python FILE`"
        ) from None


def describe_sample(sample: Sample, config: Any, job: LoopJob) -> str:
    """Describe a sample in words, such as 'a text of 512 tokens' or 'an image of 224 x 224 pixels'."""
    words = []
    if "input_ids" in sample:
        shortened = job.seq is None and text_tokens(config, job) < DEFAULT_TOKENS
        limit = " (the model's maximum)" if shortened else ""
        packed = f"a row of {number_with_noun(job.packing, 'text')} with " if job.packing else "a text of "
        role = " for the encoder" if config.is_encoder_decoder else ""
        image_tokens = count_image_tokens(config, sample)
        part = f" ({image_tokens} of them for the image)" if image_tokens else ""
        words.append(f"{packed}{len(sample['input_ids'])} tokens{limit}{part}{role}")
    if "pixel_values" in sample:
        words.append(describe_image(config, sample))
    if "input_features" in sample:
        words.append("a spectrum of {} x {}".format(*sample["input_features"].shape))
    if "input_values" in sample:
        sound = sample["input_values"]
        length = f"{len(sound)} values ({len(sound) / SOUND_SAMPLES_PER_S:g} s)"
        words.append("a spectrum of {} x {}".format(*sound.shape) if sound.dim() > 1 else f"a sound of {length}")
    labels = sample.get("labels")
    if config.is_encoder_decoder and labels is not None and labels.dim():
        words.append(f"a text of {len(labels)} tokens for the decoder")
    elif "input_ids" not in sample and labels is not None and labels.dim() == 1:
        words.append(f"a transcript of {len(labels)} tokens")
    return " and ".join(words)


def make_text(length: int, config: Any) -> torch.Tensor:
    """Return random token ids of the model's vocabulary, without the first ones, which are often special tokens."""
    vocabulary = getattr(_text_config(config), "vocab_size", END_TOKEN_ID)
    return torch.randint(FIRST_TOKEN_ID, min(END_TOKEN_ID, vocabulary), (length,))
