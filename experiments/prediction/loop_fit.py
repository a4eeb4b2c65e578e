"""Find the largest batch of a custom training that fits a card, and changes that make the training fit."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.errors import InputError
from experiments.prediction.changes import SEPARATOR, Combination, RuledOut
from experiments.prediction.custom import CustomTraining
from experiments.prediction.fit import cheapest_pairs
from experiments.prediction.loop import program_command, samples_of_step, single_changes, trace_options
from experiments.prediction.outcome_tables import outcome_cells, outcomes_table
from experiments.prediction.script.fit import BatchPrediction, ScriptFit, SharedTraces
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.speed import SAMPLES_COLUMN, STEP_COLUMN, describe_fastest, samples_per_s
from experiments.prediction.script.trace import ScriptFailed, trace_script
from experiments.results.wording import format_duration
from experiments.system.tables import Table

TOGETHER_TITLE = "no change makes the training fit, not even all changes together; GiB on one GPU"
PrintLine = Callable[[str], None]
NamedChange = tuple[str, CustomTraining]
"""The description of a change, and the changed training."""


class Attempt(NamedTuple):
    """The prediction of a training with one change.

    ``batch_prediction`` is None if the training cannot run with the change; ``reason`` says why. samples:
    number of samples in an optimizer step, over all GPUs.
    """

    change: str
    batch_prediction: BatchPrediction | None
    samples: int | None = None
    reason: str = ""

    @property
    def fits(self) -> bool:
        """Return whether the training certainly fits with the change."""
        return self.batch_prediction is not None and self.batch_prediction.card.outcome == "fits"


class ProgramTraces(SharedTraces[NamedChange]):
    """Predictions of trainings for several cards. A training is traced when its prediction is first needed.

    print_line: called with a line of progress for each trace. progress: how many of the changes were tried.
    """

    def __init__(self, card_names: Sequence[str], print_line: PrintLine) -> None:
        self.progress = ChangeProgress()

        def trace(change: NamedChange, group: Sequence[str]) -> list[ScriptPrediction]:
            name, training = change
            label = f"{training.model}, {name}{self.progress.describe()}"
            with self.progress.measure_trace():
                words, options = program_command(training), trace_options(training)
                return trace_script(words, group, print_line, options, label)

        super().__init__(card_names, trace)


class ChangeProgress:
    """How many of the changes were tried, one after the other, and how long their traces took."""

    def __init__(self) -> None:
        self._number = self._total = self._traced = 0
        self._took_s = 0.0

    def begin(self, total: int) -> None:
        """Begin to try ``total`` changes at most."""
        self._number, self._total = 0, total

    def advance(self) -> None:
        """Go on to the next change."""
        self._number += 1

    @contextmanager
    def measure_trace(self) -> Iterator[None]:
        """Measure the time of a trace."""
        started_s = time.monotonic()
        yield
        self._traced += 1
        self._took_s += time.monotonic() - started_s

    def describe(self) -> str:
        """Return the number of the current change, the number of changes, and the time left; '' without changes."""
        if not 1 <= self._number <= self._total:
            return ""
        each_s = self._took_s / self._traced if self._traced else 0.0
        left = format_duration(each_s * (self._total - self._number + 1))
        return f" (change {self._number} of at most {self._total}, at most {left} left)"


def fit_program(training: CustomTraining, traces: ProgramTraces) -> list[ScriptFit]:
    """Return the largest batch of the training for each card of ``traces``. Raises InputError and ScriptFailed."""
    return traces.fit_batches(training.batch, lambda batch: (f"batch {batch}", replace(training, batch=batch)))


def try_changes(
    training: CustomTraining, fit: ScriptFit, traces: ProgramTraces, attempts: list[Attempt] | None = None
) -> list[Attempt]:
    """Predict the training with each single change, cheapest first, on the card of ``fit``.

    Return an empty list if the training fits unchanged. If no single change fits, add the cheapest pairs of changes
    that fit. Changes are not tried if a combination that contains them does not fit. If such combinations rule out all
    changes, return only the attempts with these combinations. attempts: a list to which each attempt is added as soon
    as it is known.
    """
    attempts = [] if attempts is None else attempts
    if fit.predictions[training.batch].card.outcome == "fits":
        return attempts
    accumulated = _accumulate_smaller_batches(training, fit.largest)
    candidates = [*accumulated, *single_changes(training)]
    names = [name for name, _ in candidates]

    def try_change(change: NamedChange) -> Attempt:
        traces.progress.advance()
        name, changed = change
        try:
            return Attempt(name, traces.predict(change, fit.card.card), samples_of_step(changed))
        except (InputError, ScriptFailed) as problem:
            return Attempt(name, None, reason=str(problem))

    not_fitting: list[Attempt] = []

    def may_fit(combination: Combination[CustomTraining]) -> bool:
        attempt = try_change((combination.name, combination.training))
        if attempt.batch_prediction is None or attempt.batch_prediction.card.outcome != "oom":
            return True
        not_fitting.append(attempt)
        return False

    smallest = replace(training, batch=min((one.batch for _, one in candidates), default=training.batch))
    ruled_out = RuledOut(smallest, single_changes, may_fit, [name for name, _ in accumulated])
    traces.progress.begin(len(candidates) + 1)
    if not fit.largest_borderline and ruled_out.rule_out_all(names):
        attempts += not_fitting
        return attempts
    traces.progress.begin(len(candidates))
    for change in candidates:
        if not ruled_out.covers([change[0]]):
            attempts.append(try_change(change))
    if any(one.fits for one in attempts):
        return attempts
    changed_once = [changed for _, changed in candidates]

    def combine(cheaper: NamedChange, costlier: NamedChange) -> NamedChange | None:
        changed = dict(single_changes(cheaper[1])).get(costlier[0])
        name = f"{cheaper[0]}{SEPARATOR}{costlier[0]}"
        return None if changed is None or changed in changed_once else (name, changed)

    def try_pairs(pairs: Sequence[NamedChange]) -> list[Attempt]:
        """Return the attempts that fit. All pairs have the same costlier change."""
        traces.progress.begin(2 * len(pairs))
        by_names = {tuple(pair[0].split(SEPARATOR)): pair for pair in pairs}
        return [
            attempt for names in ruled_out.not_ruled_out([*by_names]) if (attempt := try_change(by_names[names])).fits
        ]

    attempts += cheapest_pairs(candidates, combine, try_pairs)
    return attempts


def _accumulate_smaller_batches(training: CustomTraining, largest: int) -> list[NamedChange]:
    """Return gradient accumulation with a smaller batch: the batch is halved until it fits, or until it is odd."""
    batch, accumulate = training.batch, training.accumulate
    while batch % 2 == 0 and (batch > largest or batch == training.batch):
        batch, accumulate = batch // 2, accumulate * 2
    if training.task == "generate" or batch == training.batch:
        return []
    return [(f"batch {batch}, accumulated {accumulate} times", replace(training, batch=batch, accumulate=accumulate))]


def attempts_as_data(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Return the attempts as JSON-compatible objects."""
    return [
        {
            "change": attempt.change,
            "outcome": attempt.batch_prediction.card.outcome if attempt.batch_prediction else None,
            "peak_gib": attempt.batch_prediction.prediction.peak_gib if attempt.batch_prediction else None,
            "needed_gib": attempt.batch_prediction.card.needed_gib if attempt.batch_prediction else None,
            **(attempt.batch_prediction.speed_as_data(attempt.samples) if attempt.batch_prediction else {}),
            "reason": attempt.reason,
        }
        for attempt in attempts
    ]


def attempts_table(attempts: Sequence[Attempt]) -> Table | str:
    """Return the attempts as a table; '' if there are none."""
    if not attempts:
        return ""
    none_fits = any(attempt.change.count(SEPARATOR) > 1 for attempt in attempts)
    table = outcomes_table(
        "change",
        STEP_COLUMN,
        SAMPLES_COLUMN,
        title=TOGETHER_TITLE if none_fits else "GiB on one GPU with one change or two, at the given batch",
        note="reason",
    )
    for attempt in attempts:
        prediction = attempt.batch_prediction
        cells = (
            prediction.cells(attempt.samples)
            if prediction
            else ("", "", *outcome_cells("not possible", attempt.reason))
        )
        table.add(attempt.change, *cells)
    return table


def describe_fastest_change(attempts: Sequence[Attempt]) -> list[str]:
    """Return a line that names the fastest change that fits; [] if fewer than two changes have a predicted speed."""
    speeds = {
        attempt.change: (speed, attempt.batch_prediction.card.time)
        for attempt in attempts
        if attempt.batch_prediction and attempt.batch_prediction.card.time and attempt.fits
        if (speed := samples_per_s(attempt.batch_prediction.card, attempt.samples))
    }
    return describe_fastest("change", speeds, "samples/s")
