"""Which data a row's model is given: captioned images, texts, or texts of one length beside an image."""

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.training.data.captions import build_loader, open_captions
from experiments.training.data.collate import Placeholders, build_placeholders, build_preparation, image_token
from experiments.training.data.texts import batches_per_epoch, build_text_loader, open_texts, padded

BuildLoader = Callable[[int | None], DataLoader[Any]]


@dataclass(frozen=True)
class Data:
    """The batches of an epoch on each rank, and what makes their loader once it is known where the heaviest comes.

    commit: the version of a set on the hub.
    """

    batches: int
    build: BuildLoader
    commit: str | None = None


def prepare_data(spec: RowSpec, config: Any, context: BaseContext | None = None) -> Data:
    """The row's data for the model of that configuration.

    Raises InputError when the model cannot be given the row's data set, or it has too few samples. For ``context`` see
    build_loader.
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
        return Data(batches, lambda heaviest_at: build_loader(spec, captions, preparation, heaviest_at, context))
    texts = open_texts(spec, image_token(config) if sees_images else config.get_text_config().vocab_size)
    collate = WithImages(config.vision_config.image_size, build_placeholders(spec, config)) if sees_images else padded
    return Data(
        batches_per_epoch(spec, texts),
        lambda heaviest_at: build_text_loader(spec, texts, heaviest_at, collate),
        texts.commit,
    )


@dataclass
class WithImages:
    """Texts in a batch, see text.padded, with pixel_values (batch, 3, size, size) float32, and their placeholders."""

    image_size: int
    placeholders: Placeholders | None

    def __call__(self, texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        images = torch.rand(len(texts), 3, self.image_size, self.image_size)
        batch = {"pixel_values": images} | padded(texts)
        return self.placeholders(batch) if self.placeholders else batch
