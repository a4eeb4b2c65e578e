"""Captioned images: a seeded synthetic twin or the real set, prepared for the model in the loader's workers."""

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
from experiments.training.data.collate import Preparation
from experiments.training.data.sampler import Batches
from experiments.training.failures import first_line

CAPTION_WORDS = (8, 31)
WORDS = """
a the of with and on in from fresh grilled roasted fried baked steamed sliced creamy spicy sweet sour
crisp plate bowl board table cup pan rice noodles bread pasta soup salad cheese tomato basil garlic
onion pepper lemon butter chicken beef fish shrimp tofu egg beans corn potato carrot mushroom spinach
sauce herbs cream chocolate berries apple honey cake pie toast waffle wooden white small large golden
green red topped served side garnished drizzled
""".split()  # noqa: SIM905 - one line a word reads worse


class Captions(Protocol):
    """Captioned images, each (RGB image, text)."""

    texts: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image.Image, str]: ...


class SyntheticCaptions(Dataset[Any]):
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


class FolderCaptions(Dataset[Any]):
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


class TableCaptions(Dataset[Any]):
    """Captioned images that the library datasets keeps: Parquet files, or a data set that it saved to disk.

    The first split, columns image and text (or caption). Raises InputError when that is not what the folder has.
    """

    def __init__(self, folder: Path, count: int) -> None:
        import datasets

        try:
            if caption_format(folder) == "saved":
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


def open_captions(spec: RowSpec, image_size: int) -> Captions:
    """The row's data set: synthetic, or the folder that the spec names."""
    count = spec.settings.train_samples
    assert count is not None, "a caption row states train_samples"
    if spec.data == "synthetic":
        return SyntheticCaptions(count, image_size, spec.settings.seed)
    folder = Path(spec.data)
    return FolderCaptions(folder, count) if caption_format(folder) == "metadata" else TableCaptions(folder, count)


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
) -> DataLoader[Any]:
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
