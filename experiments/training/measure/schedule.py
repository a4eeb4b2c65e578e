"""Compute how many steps a row trains: all steps of the lab, or as few as an evaluation or the peak memory needs."""

from dataclasses import dataclass, replace
from math import ceil
from statistics import median, quantiles

from experiments.results.schema import WARM_UP_STEPS
from experiments.suites.choices import Length
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings

PEAK_STEPS = 2
"""Number of optimizer steps in which a training reaches its peak memory."""
STEADY_MICRO_STEPS = 4
"""Minimum number of micro-steps that a run of length 'verdict' measures."""
STEADY_SPREAD = 0.05
"""Maximum spread of steady times (see Timing.spread)."""


@dataclass(frozen=True)
class Schedule:
    """Numbers of micro-steps of a run.

    total: micro-steps of the full-length training. done: micro-steps that an earlier run completed. minimum, maximum:
    bounds for the micro-steps of this run. accumulate: micro-steps per optimizer step. steady_s: minimum duration of
    the steps after the warm-up, in seconds; a run continues after its maximum until this duration is reached.

    The peak memory is reached in the second optimizer step, in which gradients, optimizer state and activations first
    exist together. A run of length 'peak' ends after this step. A run of length 'verdict' continues with optimizer
    steps of at least four micro-steps in total. If their times vary too much, it continues up to twice the minimum.
    """

    total: int
    minimum: int
    maximum: int
    accumulate: int
    done: int = 0
    steady_s: float = 0.0

    @property
    def last_micro_step(self) -> int:
        """The maximum number of micro-steps of this run, including those that reach ``steady_s``."""
        return self.total - self.done if self.steady_s else self.maximum

    @property
    def longest_batch_index(self) -> int | None:
        """Index of the micro-step with the longest batch: the last of the second optimizer step; None: full length."""
        return None if self.minimum == self.total else min(2 * self.accumulate, self.total) - 1

    def resumed_at(self, steps: int) -> "Schedule":
        """Return the rest of a full-length schedule after ``steps`` completed optimizer steps."""
        done = steps * self.accumulate
        remaining = self.total - done
        return replace(self, minimum=remaining, maximum=remaining, done=done)

    def may_end(self, times_s: list[float]) -> bool:
        """Return True if a run may end whose completed micro-steps took these times."""
        done = len(times_s)
        if done >= self.last_micro_step:
            return True
        if done < self.minimum or done % self.accumulate:
            return False
        timing = Timing.from_times(times_s, self.accumulate)
        return timing.total_s >= self.steady_s and (done >= self.maximum or timing.spread <= STEADY_SPREAD)


@dataclass(frozen=True)
class Timing:
    """Times of micro-steps in seconds. If there are more than two optimizer steps, the first two are left out.

    with_optimizer_step_s: times of micro-steps that end with an optimizer step. without_optimizer_step_s: times of the
    other micro-steps, which are shorter.
    """

    with_optimizer_step_s: list[float]
    without_optimizer_step_s: list[float]

    @classmethod
    def from_times(cls, times_s: list[float], accumulate: int) -> "Timing":
        """Return the timing of a run from the times of all its micro-steps."""
        warm_up = min(WARM_UP_STEPS, (len(times_s) - 1) // accumulate)
        skipped = max(0, warm_up) * accumulate
        numbered = list(enumerate(times_s, start=1))[skipped:]
        return cls(
            with_optimizer_step_s=[time_s for number, time_s in numbered if number % accumulate == 0],
            without_optimizer_step_s=[time_s for number, time_s in numbered if number % accumulate],
        )

    @property
    def micro_step_count(self) -> int:
        """The number of measured micro-steps."""
        return len(self.with_optimizer_step_s) + len(self.without_optimizer_step_s)

    @property
    def total_s(self) -> float:
        """The duration of all measured micro-steps."""
        return sum(self.with_optimizer_step_s) + sum(self.without_optimizer_step_s)

    def step_s(self, accumulate: int) -> float:
        """Return the seconds of one optimizer step, from the medians of both kinds of micro-steps; 0 if none exist."""
        if not self.with_optimizer_step_s or not self.without_optimizer_step_s:
            return accumulate * median(self.with_optimizer_step_s or self.without_optimizer_step_s or [0.0])
        return median(self.with_optimizer_step_s) + (accumulate - 1) * median(self.without_optimizer_step_s)

    @property
    def spread(self) -> float:
        """The interquartile range divided by the median, for the kind of micro-steps for which this is larger."""
        return max(relative_spread(self.with_optimizer_step_s), relative_spread(self.without_optimizer_step_s))


def build_schedule(spec: RowSpec, batches_per_epoch: int) -> Schedule:
    """Return the schedule of a row. batches_per_epoch: number of batches of each rank in an epoch."""
    schedule = schedule_of(spec.length, full_micro_steps(spec.settings, batches_per_epoch), spec.settings.accumulate)
    return replace(schedule, steady_s=spec.steady_s) if spec.length == "verdict" else schedule


def schedule_of(length: Length, total: int, accumulate: int) -> Schedule:
    """Return the schedule of a run of this length. total: number of micro-steps at full length."""
    if length == "as-taught":
        return Schedule(total, total, total, accumulate)
    if length == "peak":
        peak = min(PEAK_STEPS * accumulate, total)
        return Schedule(total, peak, peak, accumulate)
    minimum = accumulate * (WARM_UP_STEPS + ceil(STEADY_MICRO_STEPS / accumulate))
    return Schedule(total, min(minimum, total), min(2 * minimum, total), accumulate)


def full_micro_steps(settings: Settings, batches_per_epoch: int) -> int:
    """Return the number of micro-steps of the full-length training."""
    micro_steps = settings.max_epochs * batches_per_epoch
    if settings.max_steps >= 0:
        micro_steps = min(micro_steps, settings.max_steps * settings.accumulate)
    return micro_steps


def relative_spread(times_s: list[float]) -> float:
    """Return the interquartile range divided by the median; 0 for fewer than two values."""
    if len(times_s) < 2:
        return 0.0
    low, _, high = quantiles(times_s, n=4, method="inclusive")
    return (high - low) / median(times_s)
