"""How long a row trains: as the material teaches, or just long enough for a verdict or for its peak."""

from dataclasses import dataclass, replace
from math import ceil
from statistics import median, quantiles

from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings

PEAK_STEPS = 2
WARM_UP_STEPS = 2
STEADY_MICRO_STEPS = 4
STEADY_SPREAD = 0.05


@dataclass(frozen=True)
class Schedule:
    """Counts of micro-steps. taught: the whole training, of which an earlier start did ``done``; least and most: the
    bounds of this run.

    The peak of a training is reached in its second optimizer step, where gradients, optimizer state and activations
    first meet; until then memory is still being fetched. A run for the peak alone ends there. A verdict takes these two
    and then whole optimizer steps with at least four micro-steps; up to twice as many in all when their times scatter.
    """

    taught: int
    least: int
    most: int
    accumulate: int
    done: int = 0

    @property
    def heaviest_at(self) -> int | None:
        """The micro-step that gets the longest captions: the last of the second optimizer step; None as taught."""
        return None if self.least == self.taught else min(2 * self.accumulate, self.taught) - 1

    def after(self, steps: int) -> "Schedule":
        """What is left of a training as taught when ``steps`` optimizer steps of it have been done before."""
        done = steps * self.accumulate
        left = self.taught - done
        return replace(self, least=left, most=left, done=done)

    def enough(self, times_s: list[float]) -> bool:
        """Whether a run may end after micro-steps of these times."""
        done = len(times_s)
        if done >= self.most:
            return True
        if done < self.least or done % self.accumulate:
            return False
        return Timing.of(times_s, self.accumulate).spread <= STEADY_SPREAD


@dataclass(frozen=True)
class Timing:
    """Times of micro-steps, those of the first two optimizer steps left out where there are more.

    stepping_s are those that end with an optimizer step, plain_s the others: two kinds, of different length.
    """

    stepping_s: list[float]
    plain_s: list[float]

    @classmethod
    def of(cls, times_s: list[float], accumulate: int) -> "Timing":
        warm_up = min(WARM_UP_STEPS, (len(times_s) - 1) // accumulate)
        skipped = max(0, warm_up) * accumulate
        numbered = list(enumerate(times_s, start=1))[skipped:]
        return cls(
            stepping_s=[time_s for number, time_s in numbered if number % accumulate == 0],
            plain_s=[time_s for number, time_s in numbered if number % accumulate],
        )

    @property
    def measured(self) -> int:
        return len(self.stepping_s) + len(self.plain_s)

    def step_s(self, accumulate: int) -> float:
        """Seconds of one whole optimizer step, from the median of each kind; 0 without a measured micro-step."""
        if not self.stepping_s or not self.plain_s:
            return accumulate * median(self.stepping_s or self.plain_s or [0.0])
        return median(self.stepping_s) + (accumulate - 1) * median(self.plain_s)

    @property
    def spread(self) -> float:
        """Interquartile range over the median, of the kind in which it is larger."""
        return max(spread(self.stepping_s), spread(self.plain_s))


def schedule_of(spec: RowSpec, batches_per_epoch: int) -> Schedule:
    """The schedule of a row whose loader gives that many batches an epoch."""
    taught = taught_micro_steps(spec.settings, batches_per_epoch)
    accumulate = spec.settings.accumulate
    if spec.length == "as-taught":
        return Schedule(taught, taught, taught, accumulate)
    if spec.length == "peak":
        steps = min(PEAK_STEPS * accumulate, taught)
        return Schedule(taught, steps, steps, accumulate)
    least = accumulate * (WARM_UP_STEPS + ceil(STEADY_MICRO_STEPS / accumulate))
    return Schedule(taught, min(least, taught), min(2 * least, taught), accumulate)


def taught_micro_steps(settings: Settings, batches_per_epoch: int) -> int:
    """Micro-steps of the training as the recipe states it."""
    micro_steps = settings.max_epochs * batches_per_epoch
    if settings.max_steps >= 0:
        micro_steps = min(micro_steps, settings.max_steps * settings.accumulate)
    return micro_steps


def spread(times_s: list[float]) -> float:
    """Interquartile range over the median; 0 for fewer than two values."""
    if len(times_s) < 2:
        return 0.0
    low, _, high = quantiles(times_s, n=4, method="inclusive")
    return (high - low) / median(times_s)
