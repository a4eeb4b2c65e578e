"""What a folder of texts looks like, told without reading a file."""

from pathlib import Path
from typing import Literal

from experiments import captions

TABLES = {".json", ".jsonl", ".csv"}
FORMATS = "JSON, JSONL, CSV or Parquet files of its records, or what the library datasets saved to disk"

Format = Literal["saved", "tables"]


def format_of(folder: Path) -> Format | None:
    """How ``folder`` keeps texts; None when it keeps none. Parquet files may hold captioned images as well."""
    found = captions.format_of(folder)
    if found == "saved":
        return "saved"
    if found == "metadata":
        return None
    return "tables" if found == "parquet" or any(path.suffix in TABLES for path in folder.iterdir()) else None
