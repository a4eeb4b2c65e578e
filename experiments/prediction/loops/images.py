"""The image of a sample for a vision-language model: its pixels, its placeholder tokens, and what describes them.

Sources: the processors and the ``forward`` methods of transformers 5.17, models/<model type>. A processor scales each
image, or cuts it into tiles. Its settings are not in the configuration of the model, so the sizes are its defaults.
"""

from collections.abc import Callable
from copy import deepcopy
from math import prod
from typing import Any, NamedTuple

import torch

from experiments.prediction.loops.packing import IGNORED_LABEL, Sample

GRID_PATCHES = 32
"""Rows and columns of patches for models that accept images of any size, such as 448 x 448 pixels of 14 x 14."""
TILES_PER_SIDE = 2
"""Rows and columns of tiles of an image for the LLaVA-NeXT models: a square image of twice the encoder's size."""
NO_IMAGE = (
    "{}: the texts have no image, so the memory of the vision tower and of the image's tokens is not counted, and the"
    " peak is too low"
)
SPLIT_MODEL_TYPES, SPLIT_TILES_PER_SIDE = ("idefics3", "smolvlm"), 4
"""Models whose processors split a square image into tiles, and rows and columns of these tiles."""


class Image(NamedTuple):
    """Inputs of an image without a batch dimension, and number of its placeholder tokens."""

    inputs: Sample
    tokens: int


def add_image(model_class: Any, config: Any, names: list[str], inputs: Sample, positions: int | None = None) -> bool:
    """Add an image to ``inputs``, and its placeholder tokens before the text.

    names: inputs of the model. positions: shorten the text so that it has at most this many tokens with the image;
    None: keep its length. Returns False, and changes nothing, if the model type is not one of IMAGE_MAKERS.
    """
    if config.model_type not in IMAGE_MAKERS:
        return False
    image, placeholder = IMAGE_MAKERS[config.model_type](model_class, config), config.image_token_id
    text = inputs["input_ids"][: max(1, positions - image.tokens) if positions else None]
    text = text.masked_fill(text == placeholder, placeholder + 1)
    is_image = torch.cat([torch.ones(image.tokens), torch.zeros(len(text))]).long()
    inputs["input_ids"] = torch.cat([torch.full((image.tokens,), placeholder), text])
    inputs |= image.inputs
    if "mm_token_type_ids" in names:
        inputs["mm_token_type_ids"] = is_image
    if "token_type_ids" in names:  # PaliGemma: 1 for the tokens that it learns, which are not those of the image
        inputs["token_type_ids"] = 1 - is_image if config.model_type == "paligemma" else is_image
    if "cross_attention_mask" in names:
        inputs["cross_attention_mask"] = torch.ones(len(is_image), *image.inputs["aspect_ratio_mask"].shape).long()
    return True


def describe_image(config: Any, sample: Sample) -> str:
    """Describe the image of a sample in words: its height and width in pixels, before a processor cuts it."""
    height, width = sample["pixel_values"].shape[-2:]
    if "image_sizes" in sample:
        height, width = sample["image_sizes"].tolist()
    elif "image_grid_thw" in sample:
        height, width = (sample["image_grid_thw"][1:] * config.vision_config.patch_size).tolist()
    elif "aspect_ratio_ids" in sample:
        rows, columns = config.vision_config.supported_aspect_ratios[int(sample["aspect_ratio_ids"]) - 1]
        height, width = rows * height, columns * width
    elif config.model_type in SPLIT_MODEL_TYPES:
        height, width = SPLIT_TILES_PER_SIDE * height, SPLIT_TILES_PER_SIDE * width
    return f"an image of {height} x {width} pixels"


def count_image_tokens(config: Any, sample: Sample) -> int:
    """Return the number of tokens of the text that stand for its image."""
    if config.model_type not in IMAGE_MAKERS or "pixel_values" not in sample:
        return 0
    return int((sample["input_ids"] == config.image_token_id).sum())


def image_labels(config: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the tokens as labels, without those of the image."""
    return input_ids.masked_fill(input_ids == config.image_token_id, IGNORED_LABEL)


def _make_square(model_class: Any, config: Any) -> Image:
    """Return an image of the encoder's size; the encoder itself states how many tokens it gives."""
    side = _side(config.vision_config)
    inputs = {"pixel_values": _pixels(config.vision_config, side, side)}
    return Image(inputs, _count_features(model_class, config, inputs))


def _make_sized(_: Any, config: Any) -> Image:
    """Return an image for a model that accepts all sizes up to that of its encoder (Pixtral's), with its size."""
    vision, merged = config.vision_config, config.spatial_merge_size
    tokens_per_side = min(GRID_PATCHES, _side(vision) // vision.patch_size) // merged
    side = tokens_per_side * merged * vision.patch_size
    inputs = {"pixel_values": _pixels(vision, side, side), "image_sizes": torch.tensor([side, side])}
    return Image(inputs, tokens_per_side**2)


def _make_tiles(model_class: Any, config: Any) -> Image:
    """Return an image of several tiles and the whole image, scaled to one tile."""
    tile = _side(config.vision_config)
    side = TILES_PER_SIDE * tile
    pixels = _pixels(config.vision_config, tile, tile, TILES_PER_SIDE**2 + 1)
    inputs = {"pixel_values": pixels, "image_sizes": torch.tensor([side, side])}
    return Image(inputs, _count_features(model_class, config, inputs))


def _make_split(_: Any, config: Any) -> Image:
    """Return an image for Idefics: version 3 and SmolVLM split it into tiles and add the whole image."""
    vision = config.vision_config
    tile = _side(vision)
    if config.model_type == "idefics2":
        tokens = config.perceiver_config.resampler_n_latents
        return Image({"pixel_values": _pixels(vision, tile, tile, 1)}, tokens)
    tiles, per_tile = SPLIT_TILES_PER_SIDE**2 + 1, (tile // vision.patch_size // config.scale_factor) ** 2
    return Image({"pixel_values": _pixels(vision, tile, tile, tiles)}, tiles * per_tile)


def _make_grid(_: Any, config: Any) -> Image:
    """Return an image as a row of patches, as the processors of Qwen2-VL and later models return it."""
    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    inputs = {
        "pixel_values": torch.randn(GRID_PATCHES**2, values),
        "image_grid_thw": torch.tensor([1, GRID_PATCHES, GRID_PATCHES]),
    }
    return Image(inputs, GRID_PATCHES**2 // vision.spatial_merge_size**2)


def _make_cross_attended(_: Any, config: Any) -> Image:
    """Return an image for Llama 3.2 Vision: its tiles are attended to, and its place in the text is one token."""
    vision = config.vision_config
    shapes = [shape for shape in vision.supported_aspect_ratios if prod(shape) <= vision.max_num_tiles]
    rows, columns = max(shapes, key=lambda shape: (prod(shape), min(shape)))
    tile, number = _side(vision), vision.supported_aspect_ratios.index([rows, columns]) + 1
    inputs = {
        "pixel_values": _pixels(vision, tile, tile, vision.max_num_tiles)[None],
        "aspect_ratio_ids": torch.tensor([number]),
        "aspect_ratio_mask": (torch.arange(vision.max_num_tiles) < rows * columns).long()[None],
    }
    return Image(inputs, 1)


IMAGE_MAKERS: dict[str, Callable[[Any, Any], Image]] = {
    **dict.fromkeys(("llava", "vipllava", "gemma3", "paligemma", "aya_vision", "internvl", "got_ocr2"), _make_square),
    **dict.fromkeys(("cohere2_vision", "janus", "deepseek_vl", "llama4"), _make_square),
    **dict.fromkeys(("mistral3", "lighton_ocr"), _make_sized),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), _make_tiles),
    **dict.fromkeys(("idefics2", *SPLIT_MODEL_TYPES), _make_split),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v"), _make_grid),
    "mllama": _make_cross_attended,
}
"""Function that makes the image, by model type. Each type was trained for a step with its image."""


def _count_features(model_class: Any, config: Any, inputs: Sample) -> int:
    """Return the number of tokens that the model makes from the image, by a run of the encoder without memory."""
    with torch.device("meta"):
        model = model_class._from_config(deepcopy(config), attn_implementation="eager")
        batch = {name: value[None] for name, value in inputs.items()}
        batch["pixel_values"] = batch["pixel_values"].to("meta")
        owner = model if hasattr(model, "get_image_features") else model.model
        if config.model_type == "llama4":
            batch["vision_feature_select_strategy"] = config.vision_config.vision_feature_select_strategy
        features = owner.get_image_features(**batch)
    values = getattr(features, "pooler_output", None)
    values = features.last_hidden_state if values is None else values
    parts = values if isinstance(values, list | tuple) else [values]
    return sum(part.numel() // part.shape[-1] for part in parts)


def _pixels(vision: Any, height: int, width: int, *images: int) -> torch.Tensor:
    return torch.randn(*images, getattr(vision, "num_channels", 3), height, width)


def _side(vision: Any) -> int:
    size = vision.image_size
    return int(size[0] if isinstance(size, list | tuple) else size)
