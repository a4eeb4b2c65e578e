"""A sample for any model: texts, images and sounds of the sizes that its configuration states."""

from typing import Any

import torch

from experiments.errors import InputError
from experiments.prediction.loops.build import inputs_of
from experiments.prediction.loops.job import LoopJob

SOUND_SECONDS, SOUND_RATE = 10, 16_000
FRAMES, SPOKEN_WORDS = 1000, 32
FIRST_WORD, LAST_WORD = 5, 1000
WITH_IMAGE = ("blip", "blip-2", "git")
"""Models of texts and images that need an image; others are trained on texts alone."""
Sample = dict[str, torch.Tensor]


def sample(model: Any, job: LoopJob) -> Sample:
    """Return one sample without the dimension of the batch. Raises InputError for a model that takes other inputs."""
    config, names = model.config, inputs_of(model)
    found = _inputs(config, names, job)
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if not found:
        raise InputError(f"{kind}: its inputs are not known here ({', '.join(names[:4])}); write a script and trace it")
    if "labels" in names:
        found["labels"] = _labels(config, kind, found, job)
    elif {"start_positions", "end_positions"} <= set(names):
        found |= {"start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
    elif "return_loss" not in names:
        raise InputError(f"{kind}: has no loss; name a class with --model-class that has one, such as one For...LM")
    return found


def _inputs(config: Any, names: list[str], job: LoopJob) -> Sample:
    found: Sample = {}
    if "input_ids" in names:
        found["input_ids"] = _text(job.seq, config)
    if "pixel_values" in names and "input_ids" not in names:
        found["pixel_values"] = _image(config)
    if "pixel_values" in names and ("return_loss" in names or config.model_type in WITH_IMAGE):
        found["pixel_values"] = _image(config.vision_config)
    if config.model_type == "blip-2":
        if config.image_token_index is None:
            config.image_token_index = config.get_text_config().vocab_size - 1
        pictures = torch.full((config.num_query_tokens,), config.image_token_index)
        found["input_ids"] = torch.cat([pictures, found["input_ids"]])
    if "input_features" in names:
        found["input_features"] = _spectrum(config)
    if "input_values" in names:
        found["input_values"] = _sound(config)
    return found


def _spectrum(config: Any) -> torch.Tensor:
    """Return the features of a sound: bands and frames for Whisper, frames and bands for others."""
    if not hasattr(config, "num_mel_bins"):
        return torch.randn(FRAMES, config.input_feat_per_channel)
    return torch.randn(config.num_mel_bins, 2 * config.max_source_positions)


def _sound(config: Any) -> torch.Tensor:
    if hasattr(config, "max_length"):
        return torch.randn(config.max_length, config.num_mel_bins)
    return torch.randn(SOUND_SECONDS * SOUND_RATE)


def _image(config: Any) -> torch.Tensor:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(getattr(config, "num_channels", 3), height, width)


def _labels(config: Any, kind: str, found: Sample, job: LoopJob) -> torch.Tensor:
    if "Classification" in kind and "Token" not in kind:
        return torch.tensor(1)
    if config.is_encoder_decoder or kind.endswith("ForCTC"):
        return _text(job.target_seq or (job.seq if "input_ids" in found else SPOKEN_WORDS), config)
    return found["input_ids"].clone() if "input_ids" in found else torch.tensor(1)


def _text(length: int, config: Any) -> torch.Tensor:
    """Return words of the model's vocabulary; the first few of it are often special tokens."""
    vocabulary = getattr(config.get_text_config(), "vocab_size", LAST_WORD)
    return torch.randint(FIRST_WORD, min(LAST_WORD, vocabulary), (length,))
