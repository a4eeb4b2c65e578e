"""Fetches what rows read of the hub into its cache, as a job of its own before them.

python -m experiments.training.data.fetch_hub ARTIFACT

ARTIFACT is an Artifact as JSON; requirements.run_fetch prints the output. Files are compared with the checksums that
the hub states.
"""

import sys
from io import StringIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.inputs.requirements import Artifact, ProgressPrinter, run_fetch
from experiments.training.data.hub import TOKENIZER, Published, checked, fetch, fetch_weights, version_kept


class Told(tqdm):
    """The library's count of bytes, told in lines."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._tell = ProgressPrinter()
        super().__init__(*given, **options | {"file": StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.unit == "B" and self.n:
            self._tell(self.n, self.total)


def bring(need: Artifact) -> list[Path]:
    """Fetch it, and say what it is made of. Raises InputError when it cannot be had.

    Of a model or a data set that the cache has something of already, it is that version.
    """
    if need.kind == "texts":
        from experiments.training.data.corpora import HUB, published_texts, read_records

        hub = HUB[need.name]
        texts = published_texts(need.name, revision=version_kept(hub, "dataset"), tqdm_class=Told)
        read_records(need.name, checked(texts, hub, "the texts", "dataset").folder)
        return _files(texts)
    options: dict[str, Any] = {"revision": version_kept(need.name), "tqdm_class": Told}
    if need.kind == "tokenizer":
        return _files(checked(fetch(need.name, TOKENIZER, "the tokenizer", **options), need.name, "the tokenizer"))
    weights = checked(fetch_weights(need.name, **options), need.name, "the weights")
    if need.litgpt is None:
        return _files(weights)
    from experiments.training.models.litgpt_checkpoint import converted

    return [*_files(weights), converted(weights, need.litgpt).folder]


def _files(found: Published) -> list[Path]:
    return sorted(path for path in found.folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(run_fetch(sys.argv[1], bring))
