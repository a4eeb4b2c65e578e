"""Estimate how long rows take: from stored results of the same rows, or from the predicted times of their steps."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError
from experiments.history.outside_steps import OutsideSteps, outside_steps, row_parts, step_kind
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RUN_FILE, Run, RunFolder
from experiments.results.schema import WARM_UP_STEPS, Result
from experiments.suites.cards import have_same_chip
from experiments.suites.row_spec import RowSpec
from experiments.system.files import CODE_FOLDER
from experiments.training.measure.schedule import schedule_of

EVIDENCE = CODE_FOLDER / "experiments" / "evidence"
PROFILED_STEPS = 2
"""Number of steps that some rows do in addition, to record a profile: the rows whose GPU may have to wait for other
ranks or for DeepSpeed's optimizer on the CPU."""


class RowTime(NamedTuple):
    """The expected time of a row, s: the most likely time, and a lower and an upper estimate.

    This time begins when the row gets its GPUs, and ends when the next row can have them. start_s: the part of
    expected_s before the model is built. gpus: number of GPUs that the row uses. source: how the time is known, such as
    "measured on NVIDIA H200". other_chip: the time was measured on a GPU with another chip than the one that will run
    the row.
    """

    expected_s: float
    low_s: float
    high_s: float
    start_s: float
    gpus: int
    source: str
    other_chip: bool = False


@dataclass(frozen=True)
class StoredTimes:
    """Results of stored runs, each with its run, and predictions."""

    results: tuple[tuple[Run, Result], ...]
    predictions: tuple[Prediction, ...]

    @classmethod
    def read(cls, results: Path, predictions: Iterable[Prediction] = ()) -> "StoredTimes":
        """Read the project's stored runs, and the runs in ``results``; leave out runs that cannot be read.

        predictions: further predictions, which have precedence.
        """
        timed_results: list[tuple[Run, Result]] = []
        all_predictions = list(predictions)
        for folder in _readable_runs((EVIDENCE, results)):
            with suppress(InputError):
                run = folder.read_run()
                timed_results += [(run, result) for result in folder.results().values()]
                all_predictions += folder.predictions()
        return cls(tuple(timed_results), tuple(all_predictions))

    def expected_time(self, spec: RowSpec, card: str, is_job: bool = False) -> RowTime | None:
        """Return the expected time of a row on ``card``, which may emulate the row's own card; None if it is unknown.

        A time that was measured on the chip of ``card`` is preferred to a prediction, and a prediction to a time that
        was measured on another device. Times on shared GPUs do not count. is_job: whether the row is a job in a queue,
        which has to import its libraries itself.
        """
        measured = [
            result for _, result in self.results if not result.device.shared and _is_same_row(result.spec, spec)
        ]
        on_same_chip = [result for result in measured if _has_chip_of(result.device.card, card)]
        around_s = outside_steps().around_row_s(is_job)
        return (
            _measured_time(on_same_chip, spec, card, around_s)
            or self._predicted_time(spec, card, around_s)
            or _measured_time(measured, spec, card, around_s)
        )

    def _predicted_time(self, spec: RowSpec, card: str, around_s: float) -> RowTime | None:
        """Return the predicted time of the row's steps, plus the time outside of the steps; None without a prediction.

        around_s: seconds that the row needs before and after its process.
        """
        if spec.size != "full":
            return None
        for prediction in self.predictions:
            same = prediction.spec.settings == spec.settings and _has_chip_of(prediction.spec.card, card)
            if same and prediction.time:
                outside, parts = outside_steps(), row_parts(spec.settings, prediction.parameters, spec.card)
                outside_s = outside.row_s(parts, *parts) + around_s
                low, expected, high = (steps * prediction.time.step_s for steps in _step_range(prediction, spec))
                error = prediction.time.error_share
                return RowTime(
                    outside_s + expected,
                    outside_s * (1 - outside.error_share) + low * max(0.0, 1 - error),
                    outside_s * (1 + outside.error_share) + high * (1 + error),
                    outside.row_s(parts, "start") + around_s,
                    spec.settings.gpus,
                    f"predicted for {card}",
                )
        return None


def expected_steps(
    spec: RowSpec, planned_micro_steps: int, step_s: float, outside: OutsideSteps
) -> tuple[float, float, float]:
    """Return the lowest, the expected and the highest number of optimizer steps of a row that fits.

    planned_micro_steps: number of micro-steps of the training at full length. step_s: time of a step. outside: contains
    the ``longer_share`` of the kind of steps, which gives the expected number.
    """
    accumulate = spec.settings.accumulate
    schedule = schedule_of(spec.length, planned_micro_steps, accumulate)
    steady = WARM_UP_STEPS + spec.steady_s / step_s if spec.steady_s else 0.0
    profiled = PROFILED_STEPS if spec.settings.ranks > 1 or spec.settings.offloads_by_deepspeed else 0
    low, high = (
        min(max(steady, number / accumulate) + profiled, schedule.total / accumulate)
        for number in (schedule.minimum, schedule.maximum)
    )
    return low, low + outside.longer_share[step_kind(spec.settings)] * (high - low), high


def _step_range(prediction: Prediction, spec: RowSpec) -> tuple[float, float, float]:
    """Return the lowest, the expected and the highest number of optimizer steps that the row does before it ends."""
    assert prediction.time, "a prediction without the time of a step"
    planned = prediction.time.planned_micro_steps
    low, expected, high = expected_steps(spec, planned, prediction.time.step_s, outside_steps())
    if prediction.predicted_outcome == "fits":
        return low, expected, high
    fails_in = min(prediction.peak_step + 1, high)
    if prediction.likely_outcome == "fits":
        return 0, expected, high
    return 0, fails_in / 2, high if prediction.predicted_outcome == "borderline" else fails_in


class StageTimes(NamedTuple):
    """The times of a stored row, in seconds, corrected to the speed of today's code (see ``_stage_times_of``).

    start_s: time until the construction of the model begins. others_s: other time outside of the steps. steps_s: time
    of the steps.
    """

    start_s: float
    others_s: float
    steps_s: float

    @property
    def outside_s(self) -> float:
        return self.start_s + self.others_s


def _measured_time(results: Sequence[Result], spec: RowSpec, card: str, around_s: float) -> RowTime | None:
    """Return the expected time of a row from its stored results; None if there are none.

    If several results are stored, the median of their times is used. Results for another card are used only if there
    are none for the row's card. around_s: seconds that the row needs before and after its process.
    """
    results = [result for result in results if result.spec.card == spec.card] or results
    if not results:
        return None
    timed = sorted(map(_stage_times_of, results), key=sum)
    middle, low, high = timed[(len(timed) - 1) // 2], timed[0], timed[-1]
    error, device = outside_steps().error_share, results[0].device
    return RowTime(
        around_s + sum(middle),
        (around_s + low.outside_s) * (1 - error) + low.steps_s,
        (around_s + high.outside_s) * (1 + error) + high.steps_s,
        around_s + middle.start_s,
        spec.settings.gpus,
        f"measured on {device.name}" + (", tiny models" if spec.size == "tiny" else ""),
        not _has_chip_of(device.card, card),
    )


def _stage_times_of(result: Result) -> StageTimes:
    """Return the times of the stages of a stored row.

    How long a stored row took to start depends on the age of its code, and on whether it was the first row of its run.
    Therefore, the times that today's code needs replace three measured times: the start, the construction of the model,
    and the end. If a row reports no stages, or has a tiny model, its whole time counts as the time of its steps.
    """
    settings, times = result.spec.settings, result.times
    if times is None or result.spec.size == "tiny":
        return StageTimes(0.0, 0.0, result.elapsed_s)
    outside, parts = outside_steps(), row_parts(settings, result.parameters or 0, result.spec.card)
    start_s = outside.row_s(parts, "start")
    if settings.task == "generate":
        return StageTimes(start_s, 0.0, result.elapsed_s - times.start_s)
    return StageTimes(start_s, outside.row_s(parts, "build", "end"), times.train_s)


def _is_same_row(one: RowSpec, other: RowSpec) -> bool:
    same = (one.suite, one.row, one.size, one.length) == (other.suite, other.row, other.size, other.length)
    return same and one.settings == other.settings


def _has_chip_of(device: str | None, card: str) -> bool:
    return device == card or have_same_chip(device, card)


def _readable_runs(folders: Iterable[Path]) -> list[RunFolder]:
    return [RunFolder(path.parent) for folder in folders for path in sorted(folder.glob(f"*/{RUN_FILE}"))]
