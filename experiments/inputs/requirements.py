"""What rows read that is not there from the start: files of the hub, or an archive of data."""

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

CAPTIONS, MADE_UP = "gourmetgram-captions", "constant"
CONVERTING = ("litgpt", "litgpt_trainer")
PROGRESS_INTERVAL_S = 2.0


class Need(StrictModel):
    """Something that is fetched once for all rows that read it.

    name: of weights and tokenizer the model's on the hub, of texts the data set, of data the archive's URL or, where it
    is there already, its path. litgpt: LitGPT's name of the model that the weights are converted to. sha256: of data,
    what it is kept under; dataset: what data it is.
    """

    kind: Literal["weights", "tokenizer", "texts", "data"]
    name: str
    litgpt: str | None = None
    sha256: str = ""
    dataset: str = ""

    @property
    def key(self) -> str:
        """Tells it from other needs, hexadecimal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"the data {self.name.partition('?')[0]}" if self.kind == "data" else f"the {self.kind} of {self.name}"


def needs_of(spec: RowSpec, data: Need | None = None) -> tuple[Need, ...]:
    """What the row reads of the hub, and ``data`` where it reads the data of the run."""
    settings, hub = spec.settings, spec.base_model.hub
    pretrained, real = spec.weights == "pretrained", spec.data != SYNTHETIC and settings.dataset != MADE_UP
    captions = settings.dataset == CAPTIONS
    found = []
    if pretrained:
        litgpt = spec.base_model.litgpt if settings.engine in CONVERTING else None
        found.append(Need(kind="weights", name=hub, litgpt=litgpt))
    if (pretrained and captions) or (real and not captions and spec.size == "full"):
        found.append(Need(kind="tokenizer", name=hub))
    if real and spec.data == HUB:
        found.append(Need(kind="texts", name=settings.dataset))
    elif real and data:
        found.append(data)
    return tuple(found)


class Telling:
    """Says on stderr now and then how far a download is."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes are there, None where that is not known."""
        if time.monotonic() - self._told > PROGRESS_INTERVAL_S:
            self._told = time.monotonic()
            of = f" of {total / GIB:.3g}" if total else ""
            print(f"{done / GIB:.3g}{of} GiB", file=sys.stderr, flush=True)


def answer(need: str, bring: Callable[[Need], Iterable[Path]]) -> int:
    """Have ``bring`` fetch a Need (JSON) and print the paths that it is at; an exit code.

    1 where it cannot be had, the reason being the last line of stderr.
    """
    with redirect_stdout(sys.stderr):
        try:
            brought = bring(Need.model_validate_json(need))
        except InputError as problem:
            print(problem)
            return 1
    print("\n".join(map(str, brought)))
    return 0
