"""How long a row trains: as the material teaches, or just long enough for a verdict."""

from dataclasses import dataclass
from math import ceil
from statistics import median, quantiles

from experiments.recipe import RowSpec, Settings

STEADY_MICRO_STEPS = 6
STEADY_SPREAD = 0.05


@dataclass(frozen=True)
class Schedule:
    """Counts of micro-steps. taught: the whole training; least and most: the bounds of this run.

    A verdict needs the first optimizer step, in which memory and kernels settle, then whole optimizer steps with at
    least six micro-steps; up to twice as many when their times scatter. The peak of a training is reached in its
    second optimizer step, where gradients, optimizer state and activations first meet.
    """

    taught: int
    least: int
    most: int
    accumulate: int

    @property
    def heaviest_at(self) -> int | None:
        """The micro-step that gets the longest captions: the last of the second optimizer step; None as taught."""
        return None if self.least == self.taught else min(2 * self.accumulate, self.taught) - 1

    def enough(self, done: int, measured_s: list[float]) -> bool:
        """Whether a run may end after ``done`` micro-steps, given the times of those after the first optimizer step."""
        if done >= self.most:
            return True
        return done >= self.least and done % self.accumulate == 0 and spread(measured_s) <= STEADY_SPREAD


def schedule_of(spec: RowSpec, batches_per_epoch: int) -> Schedule:
    """The schedule of a row whose loader gives that many batches an epoch."""
    taught = taught_micro_steps(spec.settings, batches_per_epoch)
    if spec.length == "as-taught":
        return Schedule(taught, taught, taught, spec.settings.accumulate)
    accumulate = spec.settings.accumulate
    least = accumulate * (1 + ceil(STEADY_MICRO_STEPS / accumulate))
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
