"""Open data sets of captioned images, synthetic or real, and build their loader, whose workers prepare the images."""

import csv
import json
import multiprocessing
import random
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from experiments.errors import InputError
from experiments.inputs.formats import caption_format
from experiments.suites.row_spec import RowSpec
from experiments.training.data.collate import CaptionCollator
from experiments.training.data.sampler import SeededBatchSampler
from experiments.training.failures import first_line

CAPTION_WORD_COUNTS = (8, 31)
"""Minimum and maximum number of words of a synthetic caption."""
VOCABULARY = """
a the of with and on in from fresh grilled roasted fried baked steamed sliced creamy spicy sweet sour
crisp plate bowl board table cup pan rice noodles bread pasta soup salad cheese tomato basil garlic
onion pepper lemon butter chicken beef fish shrimp tofu egg beans corn potato carrot mushroom spinach
sauce herbs cream chocolate berries apple honey cake pie toast waffle wooden white small large golden
green red topped served side garnished drizzled
""".split()  # noqa: SIM905 - one word per line is harder to read


class CaptionDataset(Protocol):
    """Data set of captioned images, each (RGB image, text)."""

    texts: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, str]: ...


class SyntheticCaptionDataset(Dataset[Any]):
    """``count`` random images with random captions of 8 to 31 words. Equal seeds give equal images and captions."""

    def __init__(self, count: int, image_size: int, seed: int) -> None:
        generator = random.Random(seed)
        self.texts = [
            " ".join(generator.choices(VOCABULARY, k=generator.randint(*CAPTION_WORD_COUNTS))) for _ in range(count)
        ]
        self._image_size, self._seed = image_size, seed

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        generator = np.random.default_rng((self._seed, index))
        pixels = generator.integers(0, 256, (self._image_size, self._image_size, 3), dtype=np.uint8)
        return Image.fromarray(pixels), self.texts[index]


class FolderCaptionDataset(Dataset[Any]):
    """The first ``count`` captioned images of a folder.

    The folder has metadata.jsonl or metadata.csv. Each of its records has the fields file_name and text (or caption).
    Raises InputError with the name of the file if a file is missing or cannot be read.
    """

    def __init__(self, folder: Path, count: int) -> None:
        records = _read_metadata(folder)
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


class TableCaptionDataset(Dataset[Any]):
    """The first ``count`` captioned images stored by the library datasets: Parquet files, or a data set saved to disk.

    Uses the columns image and text (or caption) of the first split. Raises InputError if they cannot be read.
    """

    def __init__(self, folder: Path, count: int) -> None:
        import datasets

        try:
            if caption_format(folder) == "saved":
                loaded = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset("parquet", data_files=[str(path) for path in _parquet_files(folder)])
        except Exception as error:
            raise InputError(f"{folder}: cannot be read as captioned images ({first_line(error)})") from None
        table = next(iter(loaded.values())) if isinstance(loaded, datasets.DatasetDict) else loaded
        text = next((name for name in ("text", "caption") if name in table.column_names), None)
        if text is None or "image" not in table.column_names:
            columns = ", ".join(table.column_names)
            raise InputError(f"{folder}: needs a column image, and a column text or caption; has {columns}")
        if not isinstance(table.features["image"], datasets.Image):
            raise InputError(f"{folder}: the column image has no values of the type Image of the library datasets")
        if len(table) < count:
            raise InputError(f"{folder}: has {len(table)} captioned images, the row trains on {count}")
        self._images = table.select(range(count)).select_columns("image")
        self.texts = list(table.select(range(count))[text])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        return self._images[index]["image"].convert("RGB"), self.texts[index]


def _parquet_files(folder: Path) -> list[Path]:
    """Return the sorted Parquet files with 'train' in their names; without such files, all Parquet files."""
    files = sorted(folder.rglob("*.parquet"))
    return [path for path in files if "train" in path.name] or files


def _read_metadata(folder: Path) -> list[tuple[str, str]]:
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


def open_captions(spec: RowSpec, image_size: int) -> CaptionDataset:
    """Return the row's data set: synthetic, or read from the folder ``spec.data``."""
    count = spec.settings.train_samples
    assert count is not None, "a row with captions needs train_samples"
    if spec.data == "synthetic":
        return SyntheticCaptionDataset(count, image_size, spec.settings.seed)
    folder = Path(spec.data)
    if caption_format(folder) == "metadata":
        return FolderCaptionDataset(folder, count)
    return TableCaptionDataset(folder, count)


def loader_worker_context(spec: RowSpec) -> BaseContext | None:
    """Return the multiprocessing context of the loader's workers; None: fork the workers from this process.

    If DeepSpeed offloads the optimizer, the context is a fork server, which this function starts. Workers that are
    forked from this process would share its memory pages, so that Linux copies every page of the optimizer state when a
    step changes it (measured: 46 GiB more host memory after one backward pass of a model with 12e9 parameters).
    """
    if not spec.settings.offloads_by_deepspeed:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    forkserver.ensure_running()
    return context


def build_caption_loader(
    spec: RowSpec,
    captions: CaptionDataset,
    collator: CaptionCollator,
    longest_batch_index: int | None,
    context: BaseContext | None = None,
) -> DataLoader[Any]:
    """Return a loader of the row's batches. longest_batch_index: see SeededBatchSampler.

    context: multiprocessing context of the loader's workers; None: PyTorch's default. A tiny model has at most two
    workers.
    """
    workers = min(spec.settings.workers, 2) if spec.size == "tiny" else spec.settings.workers
    word_counts = [len(text.split()) for text in captions.texts]
    return DataLoader(
        captions,  # type: ignore[arg-type]
        batch_sampler=SeededBatchSampler(
            word_counts, spec.settings.batch_size, spec.settings.seed, longest_batch_index, spec.settings.world_size
        ),
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collator,
    )
