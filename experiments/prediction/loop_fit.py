"""Find the largest batch of a custom training that runs as a traced program, and changes that make it fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.fit import cheapest_pairs
from experiments.prediction.loop import program_command, samples_of_step, single_changes, trace_options
from experiments.prediction.outcome_tables import outcome_cells, outcomes_table
from experiments.prediction.script.fit import BatchPrediction, ScriptFit, SharedTraces
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.speed import SAMPLES_COLUMN, STEP_COLUMN, describe_fastest, samples_per_s
from experiments.prediction.script.trace import ScriptFailed, trace_script
from experiments.system.tables import Table

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


def trace_programs(card_names: Sequence[str], print_line: PrintLine) -> SharedTraces[NamedChange]:
    """Return the predictions of trainings for these cards, which are traced when they are needed.

    print_line: called with each line of progress.
    """

    def trace(change: NamedChange, group: Sequence[str]) -> list[ScriptPrediction]:
        name, training = change
        words, options = program_command(training), trace_options(training)
        return trace_script(words, group, print_line, options, f"{training.model}, {name}")

    return SharedTraces(card_names, trace)


def fit_program(training: CustomTraining, traces: SharedTraces[NamedChange]) -> list[ScriptFit]:
    """Return the largest batch of the training for each card of ``traces``. Raises InputError and ScriptFailed."""
    return traces.fit_batches(training.batch, lambda batch: (f"batch {batch}", replace(training, batch=batch)))


def try_changes(training: CustomTraining, fit: ScriptFit, traces: SharedTraces[NamedChange]) -> list[Attempt]:
    """Predict the training with each single change, cheapest first, on the card of ``fit``.

    Return nothing if the training fits unchanged. If no single change fits, add the cheapest pairs of changes that fit.
    """
    if fit.predictions[training.batch].card.outcome == "fits":
        return []

    def try_change(change: NamedChange) -> Attempt:
        name, changed = change
        try:
            return Attempt(name, traces.predict(change, fit.card.card), samples_of_step(changed))
        except (InputError, ScriptFailed) as problem:
            return Attempt(name, None, reason=str(problem))

    candidates = [*_accumulate_smaller_batches(training, fit.largest), *single_changes(training)]
    singles = [try_change(change) for change in candidates]
    if any(one.fits for one in singles):
        return singles
    changed_once = [changed for _, changed in candidates]

    def combine(cheaper: NamedChange, costlier: NamedChange) -> NamedChange | None:
        changed = dict(single_changes(cheaper[1])).get(costlier[0])
        return None if changed is None or changed in changed_once else (f"{cheaper[0]}; {costlier[0]}", changed)

    def try_pairs(pairs: Sequence[NamedChange]) -> list[Attempt]:
        return [attempt for pair in pairs if (attempt := try_change(pair)).fits]

    return [*singles, *cheapest_pairs(candidates, combine, try_pairs)]


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
    table = outcomes_table(
        "change",
        STEP_COLUMN,
        SAMPLES_COLUMN,
        title="GiB on one GPU with one change or two, at the given batch",
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
    """Return a line with the change that fits and trains the most samples per second; none without predicted times."""
    speeds = {
        attempt.change: (speed, attempt.batch_prediction.card.time)
        for attempt in attempts
        if attempt.batch_prediction and attempt.batch_prediction.card.time and attempt.fits
        if (speed := samples_per_s(attempt.batch_prediction.card, attempt.samples))
    }
    return describe_fastest("change", speeds, "samples/s")
