"""Recognize the formats of data folders with captioned images or texts, without opening files."""

from pathlib import Path
from typing import Literal

from experiments.errors import InputError
from experiments.inputs.requirements import CAPTIONS_DATASET

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
SAVED_FILES = ("dataset_dict.json", "dataset_info.json")
TABLE_SUFFIXES = {".json", ".jsonl", ".csv"}
CAPTION_FORMATS_HELP = (
    "metadata.jsonl or metadata.csv next to the images, Parquet files, or files of Dataset.save_to_disk"
)
TEXT_FORMATS_HELP = "JSON, JSONL, CSV or Parquet files of records, or files of Dataset.save_to_disk"

CaptionFormat = Literal["metadata", "saved", "parquet"]
TextFormat = Literal["saved", "tables"]


def caption_format(folder: Path) -> CaptionFormat | None:
    """Return the format of the captioned images in ``folder``; None if there are none."""
    if any((folder / name).is_file() for name in METADATA_FILES):
        return "metadata"
    if any((folder / name).is_file() for name in SAVED_FILES):
        return "saved"
    return "parquet" if next(folder.rglob("*.parquet"), None) else None


def text_format(folder: Path) -> TextFormat | None:
    """Return the format of the texts in ``folder``; None if there are none.

    Parquet files count as texts, although they may contain captioned images.
    """
    captions = caption_format(folder)
    if captions == "saved":
        return "saved"
    if captions == "metadata":
        return None
    return (
        "tables" if captions == "parquet" or any(path.suffix in TABLE_SUFFIXES for path in folder.iterdir()) else None
    )


def find_data_folder(folder: Path, dataset: str) -> Path:
    """Return the folder with records of ``dataset``: ``folder``, or the only folder in it.

    Raises InputError if neither has records.
    """
    records, format_of, formats = (
        ("captions", caption_format, CAPTION_FORMATS_HELP)
        if dataset == CAPTIONS_DATASET
        else ("texts", text_format, TEXT_FORMATS_HELP)
    )
    inside = list(folder.iterdir())
    for candidate in (folder, *(inside if len(inside) == 1 and inside[0].is_dir() else ())):
        if format_of(candidate):
            return candidate
    raise InputError(f"--data {folder}: has no {records}; a data folder for {dataset} has {formats}")
