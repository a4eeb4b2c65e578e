"""Captioned images: a seeded synthetic twin or the real set, prepared for the model in the loader's workers."""

import csv
import json
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.captions import format_of
from experiments.errors import InputError
from experiments.recipe import RowSpec
from experiments.training.ending import first_line
from experiments.training.hub import TOKENIZER, fetch
from experiments.training.versions import pil_image_processor

CAPTION_WORDS = (8, 31)
WORDS = """
a the of with and on in from fresh grilled roasted fried baked steamed sliced creamy spicy sweet sour
crisp plate bowl board table cup pan rice noodles bread pasta soup salad cheese tomato basil garlic
onion pepper lemon butter chicken beef fish shrimp tofu egg beans corn potato carrot mushroom spinach
sauce herbs cream chocolate berries apple honey cake pie toast waffle wooden white small large golden
green red topped served side garnished drizzled
""".split()  # noqa: SIM905 - one line a word reads worse
SPECIAL = {"opt": ("<s>", "<pad>", "</s>", "<unk>"), "t5": ("<pad>", "</s>", "<unk>")}
IGNORED_LABEL = -100


class Captions(Protocol):
    """Captioned images, each (RGB image, text)."""

    texts: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, str]: ...


class SyntheticCaptions(Dataset):
    """``count`` random images with made-up captions of 8 to 31 words; the same ones for the same seed."""

    def __init__(self, count: int, image_size: int, seed: int) -> None:
        draw = random.Random(seed)
        self.texts = [" ".join(draw.choices(WORDS, k=draw.randint(*CAPTION_WORDS))) for _ in range(count)]
        self._image_size, self._seed = image_size, seed

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        draw = np.random.default_rng((self._seed, index))
        pixels = draw.integers(0, 256, (self._image_size, self._image_size, 3), dtype=np.uint8)
        return Image.fromarray(pixels), self.texts[index]


class FolderCaptions(Dataset):
    """Images of a folder with metadata.jsonl or metadata.csv, whose records have file_name and text (or caption).

    Raises InputError, naming the file, when something is missing or cannot be read.
    """

    def __init__(self, folder: Path, count: int) -> None:
        records = _metadata(folder)
        if len(records) < count:
            raise InputError(f"{folder}: has {len(records)} captioned images, the row trains on {count}")
        self._files = [folder / name for name, _ in records[:count]]
        self.texts = [text for _, text in records[:count]]
        for path in self._files:
            if not path.is_file():
                raise InputError(f"{path}: the image that the metadata names is missing")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        path = self._files[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), self.texts[index]
        except OSError as error:
            raise InputError(f"{path}: the image cannot be read ({error.strerror or 'not an image'})") from None


class TableCaptions(Dataset):
    """Captioned images that the library datasets keeps: Parquet files, or a data set that it saved to disk.

    The first split, columns image and text (or caption). Raises InputError when that is not what the folder has.
    """

    def __init__(self, folder: Path, count: int) -> None:
        import datasets

        try:
            if format_of(folder) == "saved":
                found = datasets.load_from_disk(str(folder))
            else:
                found = datasets.load_dataset("parquet", data_files=[str(path) for path in _parquet_files(folder)])
        except Exception as error:
            raise InputError(f"{folder}: cannot be read as captioned images ({first_line(error)})") from None
        table = next(iter(found.values())) if isinstance(found, datasets.DatasetDict) else found
        text = next((name for name in ("text", "caption") if name in table.column_names), None)
        if text is None or not isinstance(table.features.get("image"), datasets.Image):
            raise InputError(f"{folder}: needs the columns image and text, has {', '.join(table.column_names)}")
        if len(table) < count:
            raise InputError(f"{folder}: has {len(table)} captioned images, the row trains on {count}")
        self._images = table.select(range(count)).select_columns("image")
        self.texts = list(table.select(range(count))[text])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        return self._images[index]["image"].convert("RGB"), self.texts[index]


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of the training split where files name one, else all, in order."""
    files = sorted(folder.rglob("*.parquet"))
    return [path for path in files if "train" in path.name] or files


def _metadata(folder: Path) -> list[tuple[str, str]]:
    try:
        if (path := folder / "metadata.jsonl").exists():
            records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        elif (path := folder / "metadata.csv").exists():
            with path.open(newline="") as lines:
                records = list(csv.DictReader(lines))
        else:
            raise InputError(f"{folder}: a data folder needs metadata.jsonl or metadata.csv with file_name and text")
        captioned = [
            (record["file_name"], record["text"] if "text" in record else record["caption"]) for record in records
        ]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{path}: every record needs file_name and text ({error})") from None
    for number, record in enumerate(captioned, start=1):
        if not all(isinstance(value, str) for value in record):
            raise InputError(f"{path}: every record needs file_name and text (record {number} has {record})")
    return captioned


def caption_tokenizer(texts: list[str], model_type: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """A word tokenizer over the captions themselves, with the language model's special tokens at its own ids.

    Serves random weights, whose meaning of a token is nothing anyway; a caption has one token a word and one special.
    """
    special = SPECIAL[model_type]
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=vocabulary - 1, special_tokens=list(special), show_progress=False)
    )
    template = "</s> $A" if model_type == "opt" else "$A </s>"
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("</s>", words.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@dataclass
class Placeholders:
    """Puts ``count`` placeholders of an image in front of a batch's texts, without which BLIP-2 never sees the image.

    A decoder-only language model gets labels of the same length, which ask for no placeholder.
    """

    count: int
    image_token: int
    decoder_only: bool

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        image = torch.full((len(batch["input_ids"]), self.count), self.image_token)
        ids = torch.cat([image, batch["input_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(image), batch["attention_mask"]], dim=1)
        labels = batch["labels"]
        if self.decoder_only:
            labels = torch.cat([torch.full_like(image, IGNORED_LABEL), labels], dim=1)
        return batch | {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass
class Preparation:
    """Turns captioned images into a batch of the model, in the worker that loads them.

    Shapes: pixel_values (batch, 3, size, size) of ``dtype``, the one that the model computes with, so that no more
    bytes travel than it takes; input_ids, attention_mask, labels (batch, tokens) int64, padded to the longest caption.
    Without placeholders the caption's tokens alone are input and labels.
    """

    image_processor: Any
    tokenizer: Any
    max_length: int
    placeholders: Placeholders | None
    dtype: torch.dtype

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> dict[str, torch.Tensor]:
        images, texts = zip(*samples, strict=True)
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.dtype)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": ids}
        return self.placeholders(batch) if self.placeholders else batch


class Batches(Sampler[list[int]]):
    """Index lists of ``batch_size``, reshuffled every epoch by the seed, a remainder dropped.

    lengths has a number for each sample, its words or tokens. heaviest_at, when given, is the place, counted from the
    first epoch on, that gets the longest samples: a run that is cut short then still meets the most memory that the
    whole training would. Each of several ranks takes every ranks-th sample.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, heaviest_at: int | None, ranks: int = 1
    ) -> None:
        if batch_size * ranks > len(lengths):
            raise InputError(
                f"batch_size = {batch_size}: the data set has only {len(lengths)} samples for {ranks} device(s)"
            )
        self._lengths, self._batch_size, self._heaviest_at, self._ranks = lengths, batch_size, heaviest_at, ranks
        self._shuffle = random.Random(seed)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths) // (self._batch_size * self._ranks)

    def __iter__(self) -> Iterator[list[int]]:
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        order = list(range(rank, len(self._lengths), self._ranks))
        self._shuffle.shuffle(order)
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        batches = batches[: len(self)]
        place = -1 if self._heaviest_at is None else self._heaviest_at - self._epoch * len(self)
        if 0 <= place < len(batches):
            by_length = sorted(order, key=self._lengths.__getitem__, reverse=True)
            batches[place] = by_length[: self._batch_size]
        self._epoch += 1
        yield from batches  # lazily: a loader with workers makes two iterators and takes from one


def open_captions(spec: RowSpec, image_size: int) -> Captions:
    """The row's data set: synthetic, or the folder that the spec names."""
    count = spec.settings.train_samples
    assert count is not None, "a caption row states train_samples"
    if spec.data == "synthetic":
        return SyntheticCaptions(count, image_size, spec.settings.seed)
    folder = Path(spec.data)
    return FolderCaptions(folder, count) if format_of(folder) == "metadata" else TableCaptions(folder, count)


def build_preparation(spec: RowSpec, config: Any, texts: list[str]) -> Preparation:
    """How the row's samples become batches, for a model of that configuration."""
    size = config.vision_config.image_size
    tokenizer = (
        AutoTokenizer.from_pretrained(fetch(spec.facts.hub, TOKENIZER, "the tokenizer").folder)
        if spec.weights == "pretrained"
        else caption_tokenizer(texts, config.text_config.model_type, config.text_config.vocab_size)
    )
    return Preparation(
        image_processor=pil_image_processor()(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        max_length=spec.settings.max_length,
        placeholders=build_placeholders(spec, config),
        dtype=torch.bfloat16 if spec.settings.precision == "bf16-true" else torch.float32,
    )


def build_placeholders(spec: RowSpec, config: Any) -> Placeholders | None:
    """What input 'with-image' puts in front of the texts; None as taught."""
    if spec.input == "as-taught":
        return None
    return Placeholders(config.num_query_tokens, image_token(config), config.use_decoder_only_language_model)


def image_token(config: Any) -> int:
    """The id of the image's placeholder."""
    return int(config.image_token_index if hasattr(config, "image_token_index") else config.image_token_id)


def start_workers_apart(spec: RowSpec) -> BaseContext | None:
    """Where the loader's workers come from: for an offloaded optimizer a fork server, started now; else None, a fork.

    Forked workers share the trainer's pages, so that each page of the optimizer in host memory that a step changes is
    copied and kept twice (seen: 46 GiB more after one backward pass of a 12e9-parameter model).
    """
    if "offload" not in spec.settings.strategy:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    forkserver.ensure_running()
    return context


def build_loader(
    spec: RowSpec,
    captions: Captions,
    preparation: Preparation,
    heaviest_at: int | None,
    context: BaseContext | None = None,
) -> DataLoader:
    """Batches in the row's order, prepared in its workers (at most two for a miniature), which ``context`` starts."""
    workers = min(spec.settings.workers, 2) if spec.size == "tiny" else spec.settings.workers
    words = [len(text.split()) for text in captions.texts]
    return DataLoader(
        captions,  # type: ignore[arg-type]
        batch_sampler=Batches(
            words, spec.settings.batch_size, spec.settings.seed, heaviest_at, spec.settings.world_size
        ),
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=preparation,
    )
