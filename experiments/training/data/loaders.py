"""Prepare the data of a row: captioned images, texts, or texts with images."""

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.training.data.captions import build_caption_loader, open_captions
from experiments.training.data.collate import (
    Batch,
    ImagePlaceholders,
    build_caption_collator,
    build_placeholders,
    image_token_id,
)
from experiments.training.data.texts import Collate, batches_per_epoch, build_text_loader, open_texts, pad_texts


@dataclass(frozen=True)
class RowData:
    """The data of a row.

    batches_per_epoch: number of batches that each rank has in an epoch. commit: the data set's version on the hub.
    build_loader: returns the loader; its argument is the index of the batch that gets the longest samples (see
    SeededBatchSampler).
    """

    batches_per_epoch: int
    build_loader: Callable[[int | None], DataLoader[Any]]
    commit: str | None = None


def prepare_data(spec: RowSpec, config: Any, context: BaseContext | None = None) -> RowData:
    """Return the row's data for a model with the configuration ``config``. context: see build_caption_loader.

    Raises InputError if the model cannot use the row's data set, or the data set has too few samples.
    """
    settings, multimodal = spec.settings, config.model_type == "blip-2"
    if settings.dataset == "gourmetgram-captions":
        if not multimodal:
            raise InputError(
                f"dataset = {settings.dataset!r}: model {settings.model!r} takes no images;"
                " allowed: constant, alpaca2k, imdb"
            )
        captions = open_captions(spec, config.vision_config.image_size)
        collator = build_caption_collator(spec, config, captions.texts)
        batches = len(captions.texts) // (settings.batch_size * settings.world_size)
        return RowData(
            batches,
            lambda longest_batch_index: build_caption_loader(spec, captions, collator, longest_batch_index, context),
        )
    texts = open_texts(spec, image_token_id(config) if multimodal else config.get_text_config().vocab_size)
    collate: Collate = pad_texts
    if multimodal:
        collate = TextsWithImages(config.vision_config.image_size, build_placeholders(spec, config))
    return RowData(
        batches_per_epoch(spec, texts),
        lambda longest_batch_index: build_text_loader(spec, texts, longest_batch_index, collate),
        texts.commit,
    )


@dataclass
class TextsWithImages:
    """Collate function that adds random images to texts: pixel_values (batch, 3, size, size) float32."""

    image_size: int
    placeholders: ImagePlaceholders | None

    def __call__(self, texts: list[torch.Tensor]) -> Batch:
        images = torch.rand(len(texts), 3, self.image_size, self.image_size)
        batch = {"pixel_values": images} | pad_texts(texts)
        return self.placeholders(batch) if self.placeholders else batch
