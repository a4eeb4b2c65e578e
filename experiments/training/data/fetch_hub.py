"""Download weights, tokenizer or texts of rows into the cache of the Hugging Face hub, before the rows run.

    python -m experiments.training.data.fetch_hub ARTIFACT

ARTIFACT is an Artifact as JSON. Compares the files with the hub's checksums and prints their paths (see
inputs.requirements.run_fetch).
"""

import sys
from io import StringIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.inputs.requirements import Artifact, ProgressPrinter, run_fetch
from experiments.training.data.hub import (
    TOKENIZER_FILES,
    VersionedFolder,
    cached_commit,
    fetch_files,
    fetch_weights,
    verify_checksums,
)


class PrintedProgress(tqdm):  # type: ignore[misc]
    """Progress bar for the hub library that prints the number of bytes as lines of text."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._print = ProgressPrinter()
        super().__init__(*arguments, **options | {"file": StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.unit == "B" and self.n:
            self._print(self.n, self.total)


def fetch_artifact(artifact: Artifact) -> list[Path]:
    """Download the artifact and return its files. Raises InputError if the download fails.

    If the cache already has files of the model or data set, the version of these files is downloaded, not the newest.
    """
    if artifact.kind == "texts":
        from experiments.training.data.corpora import HUB_IDS, fetch_texts, read_records

        hub = HUB_IDS[artifact.name]
        texts = fetch_texts(artifact.name, revision=cached_commit(hub, "dataset"), tqdm_class=PrintedProgress)
        read_records(artifact.name, verify_checksums(texts, hub, "the texts", "dataset").folder)
        return _list_files(texts)
    options: dict[str, Any] = {"revision": cached_commit(artifact.name), "tqdm_class": PrintedProgress}
    if artifact.kind == "tokenizer":
        return _list_files(
            verify_checksums(
                fetch_files(artifact.name, TOKENIZER_FILES, "the tokenizer", **options), artifact.name, "the tokenizer"
            )
        )
    weights = verify_checksums(fetch_weights(artifact.name, **options), artifact.name, "the weights")
    if artifact.litgpt is None:
        return _list_files(weights)
    from experiments.training.data.litgpt_checkpoint import convert_checkpoint

    return [*_list_files(weights), convert_checkpoint(weights, artifact.litgpt).folder]


def _list_files(source: VersionedFolder) -> list[Path]:
    return sorted(path for path in source.folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(run_fetch(sys.argv[1], fetch_artifact))
