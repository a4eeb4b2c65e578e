"""Which data a row's model is given: captioned images, texts, or texts of one length beside an image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from experiments.errors import InputError
from experiments.recipe import RowSpec
from experiments.training.data import (
    Placeholders,
    build_loader,
    build_placeholders,
    build_preparation,
    image_token,
    open_captions,
)
from experiments.training.text import batches_per_epoch, build_text_loader, padded

BuildLoader = Callable[[int | None], DataLoader]


def prepare_data(spec: RowSpec, config: Any, context: BaseContext | None = None) -> tuple[int, BuildLoader]:
    """The batches of an epoch on each rank, and what makes their loader once it is known where the heaviest comes.

    config is the model's. Raises InputError when the model cannot be given the row's data set, or it has too few
    samples. For ``context`` see build_loader.
    """
    settings, sees_images = spec.settings, config.model_type == "blip-2"
    if settings.dataset == "gourmetgram-captions":
        if not sees_images:
            raise InputError(
                f"dataset = {settings.dataset!r}: model {settings.model!r} sees no images;"
                " allowed: constant, alpaca2k, imdb"
            )
        captions = open_captions(spec, config.vision_config.image_size)
        preparation = build_preparation(spec, config, captions.texts)
        batches = len(captions.texts) // (settings.batch_size * settings.world_size)
        return batches, lambda heaviest_at: build_loader(spec, captions, preparation, heaviest_at, context)
    if sees_images:
        collate = WithImages(config.vision_config.image_size, build_placeholders(spec, config))
        build = partial(build_text_loader, spec, image_token(config), collate=collate)
    else:
        build = partial(build_text_loader, spec, config.get_text_config().vocab_size)
    return batches_per_epoch(spec), build


@dataclass
class WithImages:
    """Texts in a batch, see text.padded, with pixel_values (batch, 3, size, size) float32, and their placeholders."""

    image_size: int
    placeholders: Placeholders | None

    def __call__(self, texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        images = torch.rand(len(texts), 3, self.image_size, self.image_size)
        batch = {"pixel_values": images} | padded(texts)
        return self.placeholders(batch) if self.placeholders else batch
