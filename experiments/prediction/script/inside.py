"""Predict memory and time of a block of a Python program or notebook, in the process of the program."""

import atexit
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.script.record import ScriptPrediction, TraceEnd
from experiments.results.memory_parts import PARTS_OF_SCRIPT
from experiments.results.predictions import PredictedOutcome, StepTime
from experiments.suites.cards import supported_card
from experiments.system.files import cache_folder
from provision.temporary import TemporaryFolder


class EnoughSteps(BaseException):
    """Signal that ends the block of `with phantom(...)`.

    The signal is a BaseException, so that a training loop that catches Exception does not catch it.
    """


class BlockPrediction:
    """The prediction of the training in a block `with phantom(...)`; its memory is in GiB (bytes / 1024**3)."""

    def __init__(self) -> None:
        self._prediction: ScriptPrediction | None = None

    @property
    def prediction(self) -> ScriptPrediction:
        """Return the complete prediction. Raises InputError until the with block has ended."""
        if self._prediction is None:
            raise InputError("phantom(): the prediction is available only after the with block has ended")
        return self._prediction

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
        """Return the capacity from which on the training completes, GiB."""
        return self.prediction.cards[0].needed_gib

    @property
    def outcome(self) -> PredictedOutcome:
        """Return whether the training fits the card: fits, borderline or oom."""
        return self.prediction.cards[0].outcome

    @property
    def time(self) -> StepTime | None:
        """Return the time of the last traced optimizer step; None if unknown: ``prediction.time_unknown`` says why."""
        return self.prediction.cards[0].time

    @property
    def parts_gib(self) -> dict[str, float]:
        """Return the parts of the peak: parameters, gradients, optimizer, activations, buffers."""
        return {part.name: getattr(self.prediction.at_peak, part.field) for part in PARTS_OF_SCRIPT}


@contextmanager
def phantom(card: str, steps: int | None = 2) -> Iterator[BlockPrediction]:
    """Run the block on a simulated GPU; yield an object that has the prediction after the block.

    The block ends before its training takes more than ``steps`` optimizer steps; None: the block runs to its end.

    Raises InputError for an unknown card, if the block allocates nothing on the GPU, if torch is already imported, and
    for a second block, because PyTorch detects GPUs only once per process.
    """
    supported_card(card, "phantom()")
    if "torch" in sys.modules:
        raise InputError(
            "phantom(): PyTorch is already imported; begin the block before the import, and use one block per process"
        )
    started_s = time.perf_counter()
    from experiments.prediction.script.traced.device import install_phantom_device

    folder = TemporaryFolder("trackers")
    atexit.register(folder.remove)
    device = install_phantom_device(card, cache_folder(), folder.path)
    from experiments.prediction.peak import MemoryTags
    from experiments.prediction.script.traced.attribution.lines import LineTracker
    from experiments.prediction.script.traced.build_prediction import Trace, build_prediction
    from experiments.prediction.script.traced.watch import TrainingWatcher
    from experiments.prediction.times.record import StepRecorder

    def raise_enough_steps() -> None:
        raise EnoughSteps

    maximum = sys.maxsize if steps is None else steps
    watcher = TrainingWatcher(MemoryTags(device), StepRecorder(device), maximum, raise_enough_steps)
    lines = LineTracker(device, _program_folder())
    watcher.install()
    lines.start()
    predicted = BlockPrediction()
    ended: TraceEnd = "ended"
    try:
        yield predicted
    except EnoughSteps:
        ended = "stopped"
    finally:
        lines.stop()
    if not watcher.tags.event_count:
        raise InputError("phantom(): the block allocated nothing on the GPU")
    predicted._prediction = build_prediction(Trace(device, (card,), 0, 1, started_s), watcher, lines, ended)


def _program_folder() -> Path:
    """Return the folder of the running program; for a notebook the working directory."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).resolve().parent if file else Path.cwd()
