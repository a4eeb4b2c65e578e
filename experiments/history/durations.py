"""Estimate how long rows take: from stored results of the same rows, or from the predicted times of their steps."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiments.errors import InputError
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RUN_FILE, Run, RunFolder
from experiments.results.schema import Result
from experiments.suites.cards import have_same_chip
from experiments.suites.row_spec import RowSpec
from experiments.system.files import CODE_FOLDER
from experiments.training.measure.schedule import schedule_of

EVIDENCE = CODE_FOLDER / "experiments" / "evidence"


class RowTime(NamedTuple):
    """The expected time of a row from its start to its end, s, as an interval.

    gpus: number of GPUs that the row uses. source: how the time is known, such as "measured on NVIDIA H200".
    other_chip: the time was measured on a GPU with another chip than the one that will run the row.
    """

    low_s: float
    high_s: float
    gpus: int
    source: str
    other_chip: bool = False


@dataclass(frozen=True)
class StoredTimes:
    """Results and predictions of stored runs, with the run of each."""

    results: tuple[tuple[Run, Result], ...]
    predictions: tuple[Prediction, ...]

    @classmethod
    def read(cls, results: Path, predictions: Iterable[Prediction] = ()) -> "StoredTimes":
        """Read the project's stored runs, and the runs in ``results``; leave out runs that cannot be read.

        predictions: further predictions, which have precedence.
        """
        found: list[tuple[Run, Result]] = []
        predicted = list(predictions)
        for folder in _runs((EVIDENCE, results)):
            with suppress(InputError):
                run = folder.read_run()
                found += [(run, result) for result in folder.results().values()]
                predicted += folder.predictions()
        return cls(tuple(found), tuple(predicted))

    def expected_time(self, spec: RowSpec, card: str) -> RowTime | None:
        """Return the expected time of a row on ``card``, which may emulate the row's own card; None if it is unknown.

        A time that was measured on the chip of ``card`` counts first, then a prediction, then a time that was measured
        on another device. Times on shared GPUs do not count.
        """
        measured = [
            result
            for run, result in self.results
            if not result.device.shared
            if (run.suite, run.size, run.length, result.spec.row) == (spec.suite, spec.size, spec.length, spec.row)
        ]
        own = [result for result in measured if _is_chip_of(result.device.card, card)]
        return (
            _longest_measured_time(own, spec, card)
            or self._predicted_time(spec, card)
            or _longest_measured_time(measured, spec, card)
        )

    def _predicted_time(self, spec: RowSpec, card: str) -> RowTime | None:
        """Return the predicted time of the row's steps, plus the time that rows need in addition to their steps."""
        if spec.size != "full":
            return None
        for prediction in self.predictions:
            same = prediction.spec.settings == spec.settings and _is_chip_of(prediction.spec.card, card)
            if same and prediction.time:
                low, high = _steps(prediction, spec)
                step_s, error = prediction.time.step_s, prediction.time.error_share
                besides_steps_s = self.besides_steps_s(spec.settings.ranks > 1)
                return RowTime(
                    besides_steps_s + low * step_s * max(0.0, 1 - error),
                    besides_steps_s + high * step_s * (1 + error),
                    spec.settings.gpus,
                    f"predicted for {card}",
                )
        return None

    def besides_steps_s(self, several_ranks: bool) -> float:
        """Return the median time that rows at full size need in addition to their steps, s; 0 if none was measured.

        several_ranks: whether the rows have several ranks, or one. The first steps take longer than later steps; the
        time includes this difference.
        """
        times = [
            result.elapsed_s - result.speed.optimizer_steps * result.speed.step_s
            for run, result in self.results
            if run.size == "full" and result.outcome == "fits" and result.speed
            if (len(result.ranks) > 1) == several_ranks
        ]
        return median(times) if times else 0.0


def _steps(prediction: Prediction, spec: RowSpec) -> tuple[float, float]:
    """Return the lowest and the highest number of optimizer steps that the row does before it ends."""
    assert prediction.time, "a prediction without the time of a step"
    accumulate = spec.settings.accumulate
    schedule = schedule_of(spec.length, prediction.time.planned_micro_steps, accumulate)
    if prediction.predicted_outcome != "fits":
        return 0, min(prediction.peak_step + 1, schedule.maximum / accumulate)
    return schedule.minimum / accumulate, schedule.maximum / accumulate


def _longest_measured_time(results: Sequence[Result], spec: RowSpec, card: str) -> RowTime | None:
    """Return the longest measured time of a row; None without a result."""
    if not results:
        return None
    longest = max(results, key=lambda result: result.elapsed_s)
    source = f"measured on {longest.device.name}" + (", tiny models" if spec.size == "tiny" else "")
    elapsed_s, other_chip = longest.elapsed_s, not _is_chip_of(longest.device.card, card)
    return RowTime(elapsed_s, elapsed_s, spec.settings.gpus, source, other_chip)


def _is_chip_of(device: str | None, card: str) -> bool:
    return device == card or have_same_chip(device, card)


def _runs(folders: Iterable[Path]) -> list[RunFolder]:
    return [RunFolder(path.parent) for folder in folders for path in sorted(folder.glob(f"*/{RUN_FILE}"))]
