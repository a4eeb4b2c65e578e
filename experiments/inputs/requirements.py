"""Artifacts, which are downloaded before rows read them: files of the Hugging Face hub, and archives of data."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

from experiments.errors import InputError
from experiments.suites.choices import HUB, SYNTHETIC
from experiments.suites.row_spec import RowSpec
from experiments.suites.yaml_schema import StrictModel
from experiments.system.files import GIB

CAPTIONS_DATASET, CONSTANT_DATASET = "gourmetgram-captions", "constant"
CONVERTING_ENGINES = ("litgpt", "litgpt_trainer")
"""Engines that convert published weights to LitGPT's format."""
PROGRESS_INTERVAL_S = 2.0


class Artifact(StrictModel):
    """Files that are downloaded once for all rows that read them.

    kind: "texts" are published texts from the Hugging Face hub; "data" is the user's archive or folder. name: for
    weights and tokenizers, the model on the hub; for texts, the data set; for data, the URL or path of the archive.
    litgpt: LitGPT's name of the model, if the weights are converted for LitGPT. sha256: checksum of data, which is also
    the name of the data in the cache. dataset: the data set to which the data belongs.
    """

    kind: Literal["weights", "tokenizer", "texts", "data"]
    name: str
    litgpt: str | None = None
    sha256: str = ""
    dataset: str = ""

    @property
    def key(self) -> str:
        """Return the id of the artifact, 16 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"the data {self.name.partition('?')[0]}" if self.kind == "data" else f"the {self.kind} of {self.name}"


def required_artifacts(spec: RowSpec, data: Artifact | None = None) -> tuple[Artifact, ...]:
    """Return the artifacts that the row reads: files of the hub, and ``data`` if the row reads the user's data."""
    settings, hub = spec.settings, spec.base_model.hub
    pretrained, real = spec.weights == "pretrained", spec.data != SYNTHETIC and settings.dataset != CONSTANT_DATASET
    captions = settings.dataset == CAPTIONS_DATASET
    artifacts = []
    if pretrained:
        litgpt = spec.base_model.litgpt if settings.engine in CONVERTING_ENGINES else None
        artifacts.append(Artifact(kind="weights", name=hub, litgpt=litgpt))
    if (pretrained and captions) or (real and not captions and spec.size == "full"):
        artifacts.append(Artifact(kind="tokenizer", name=hub))
    if real and spec.data == HUB:
        artifacts.append(Artifact(kind="texts", name=settings.dataset))
    elif real and data:
        artifacts.append(data)
    return tuple(artifacts)


class ProgressPrinter:
    """Callback that prints the progress of a download on stderr, at most every PROGRESS_INTERVAL_S."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """Print ``done`` of ``total`` bytes; None if the total is unknown."""
        if time.monotonic() - self._printed_at > PROGRESS_INTERVAL_S:
            self._printed_at = time.monotonic()
            of_total = f" of {total / GIB:.3g}" if total else ""
            print(f"{done / GIB:.3g}{of_total} GiB", file=sys.stderr, flush=True)


def run_fetch(artifact: str, fetch: Callable[[Artifact], Iterable[Path]]) -> int:
    """Download an artifact (JSON) with ``fetch`` and print the paths of its files; return the exit code.

    If the download fails, the code is 1 and the last line of stderr is the reason.
    """
    with redirect_stdout(sys.stderr):
        try:
            paths = fetch(Artifact.model_validate_json(artifact))
        except InputError as problem:
            print(problem)
            return 1
    print("\n".join(map(str, paths)))
    return 0
