"""What a folder of captioned images looks like, told without opening an image."""

from pathlib import Path
from typing import Literal

METADATA = ("metadata.jsonl", "metadata.csv")
SAVED = ("dataset_dict.json", "dataset_info.json")
FORMATS = "metadata.jsonl or metadata.csv beside the images, Parquet files, or what the library datasets saved to disk"

Format = Literal["metadata", "saved", "parquet"]


def format_of(folder: Path) -> Format | None:
    """How ``folder`` keeps captioned images; None when it keeps none."""
    if any((folder / name).is_file() for name in METADATA):
        return "metadata"
    if any((folder / name).is_file() for name in SAVED):
        return "saved"
    return "parquet" if next(folder.rglob("*.parquet"), None) else None
