"""Predict the GPU memory of a part of a Python program, or of a notebook, in its own process."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.script.record import Ended, ScriptPrediction
from experiments.results.memory_parts import PARTS_AT_PEAK
from experiments.results.predictions import PredictedOutcome
from experiments.suites.cards import supported_card
from experiments.system.files import cache_folder


class EnoughSteps(BaseException):
    """Leaves the block of `with phantom(...)`; not an Exception, so that a training loop does not handle it."""


class PhantomGpu:
    """What the training in the block of `with phantom(...)` needs. Memory in GiB (bytes / 1024**3)."""

    def __init__(self) -> None:
        self._found: ScriptPrediction | None = None

    @property
    def prediction(self) -> ScriptPrediction:
        """Return the whole prediction. Raises InputError inside the block."""
        if self._found is None:
            raise InputError("phantom(): the prediction exists after the block")
        return self._found

    @property
    def peak_gib(self) -> float:
        """Return the maximum allocated memory."""
        return self.prediction.peak_gib

    @property
    def reserved_gib(self) -> float:
        """Return the maximum reserved memory on this card."""
        return self.prediction.cards[0].reserved_gib

    @property
    def needed_gib(self) -> float:
        """Return the smallest capacity with which the training completes."""
        return self.prediction.cards[0].needed_gib

    @property
    def outcome(self) -> PredictedOutcome:
        """Return whether the training fits the card: fits, borderline or oom."""
        return self.prediction.cards[0].outcome

    @property
    def parts_gib(self) -> dict[str, float]:
        """Return the parts of the peak: parameters, gradients, optimizer, activations, buffers."""
        return {part.name: getattr(self.prediction.at_peak, part.field) for part in PARTS_AT_PEAK}


@contextmanager
def phantom(card: str, steps: int | None = 2) -> Iterator[PhantomGpu]:
    """Run the block on a GPU that does not exist; yield an object that has the prediction after the block.

    The block is left before its training takes more than ``steps`` optimizer steps; None: it runs to its end.

    Raises InputError for an unknown card, if the block allocates nothing on the GPU, if torch is already imported, and
    for a second block: PyTorch looks for GPUs once in each process.
    """
    supported_card(card, "phantom()")
    if "torch" in sys.modules:
        raise InputError("phantom(): PyTorch is already imported; begin the block before, once in each process")
    begun = time.perf_counter()
    from experiments.prediction.script.traced.device import phantom_device

    device = phantom_device(card, cache_folder())
    from experiments.prediction.peak import Tags
    from experiments.prediction.script.traced.answer import Traced, prediction
    from experiments.prediction.script.traced.lines import Lines
    from experiments.prediction.script.traced.watch import Watcher

    def enough() -> None:
        raise EnoughSteps

    watcher = Watcher(Tags(device), sys.maxsize if steps is None else steps, enough)
    lines = Lines(device, _folder())
    watcher.install()
    lines.follow()
    gpu = PhantomGpu()
    ended: Ended = "ended"
    try:
        yield gpu
    except EnoughSteps:
        ended = "stopped"
    finally:
        lines.end()
    if not watcher.tags.event:
        raise InputError("phantom(): the block allocated nothing on the GPU")
    gpu._found = prediction(Traced(device, (card,), 0, 1, begun), watcher, lines, ended)


def _folder() -> Path:
    """Return the folder of the program, or the working directory of a notebook."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).resolve().parent if file else Path.cwd()
