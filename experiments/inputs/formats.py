"""Formats of data folders: captioned images and texts, recognized without opening a file."""

from pathlib import Path
from typing import Literal

from experiments.errors import InputError
from experiments.inputs.requirements import CAPTIONS

METADATA = ("metadata.jsonl", "metadata.csv")
SAVED = ("dataset_dict.json", "dataset_info.json")
TABLES = {".json", ".jsonl", ".csv"}
CAPTION_FORMATS = (
    "metadata.jsonl or metadata.csv beside the images, Parquet files, or what the library datasets saved to disk"
)
TEXT_FORMATS = "JSON, JSONL, CSV or Parquet files of its records, or what the library datasets saved to disk"

CaptionFormat = Literal["metadata", "saved", "parquet"]
TextFormat = Literal["saved", "tables"]


def caption_format(folder: Path) -> CaptionFormat | None:
    """Return how ``folder`` stores captioned images; None if it has none."""
    if any((folder / name).is_file() for name in METADATA):
        return "metadata"
    if any((folder / name).is_file() for name in SAVED):
        return "saved"
    return "parquet" if next(folder.rglob("*.parquet"), None) else None


def text_format(folder: Path) -> TextFormat | None:
    """Return how ``folder`` stores texts; None if it has none. Parquet files may hold captioned images as well."""
    found = caption_format(folder)
    if found == "saved":
        return "saved"
    if found == "metadata":
        return None
    return "tables" if found == "parquet" or any(path.suffix in TABLES for path in folder.iterdir()) else None


def data_folder_in(folder: Path, dataset: str) -> Path:
    """Return the folder with records of ``dataset``: ``folder``, or the only folder in it.

    Raises InputError if neither has any.
    """
    what, format_of, formats = (
        ("captions", caption_format, CAPTION_FORMATS) if dataset == CAPTIONS else ("texts", text_format, TEXT_FORMATS)
    )
    inside = list(folder.iterdir())
    for place in (folder, *(inside if len(inside) == 1 and inside[0].is_dir() else ())):
        if format_of(place):
            return place
    raise InputError(f"--data {folder}: has no {what}; a data folder for {dataset} has {formats}")
