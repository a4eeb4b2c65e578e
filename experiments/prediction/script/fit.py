"""Find the largest batch with which a training script fits a card."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from experiments.errors import InputError
from experiments.prediction.batches import LARGEST_BATCH, BatchSearch
from experiments.prediction.outcome_tables import outcome_cells, outcomes_table
from experiments.prediction.script.record import CardPrediction, ScriptPrediction
from experiments.prediction.script.speed import (
    SAMPLES_COLUMN,
    STEP_COLUMN,
    describe_fastest,
    samples_cell,
    speed_as_data,
    step_cell,
    time_notes,
)
from experiments.results.predictions import BORDERLINE_SHARE
from experiments.suites.cards import card_notes
from experiments.system.tables import Column, Line

FIRST_BATCH = 8
"""The batch that is tried first if the command does not name one."""
TraceBatch = Callable[[int], list[ScriptPrediction]]


class BatchPrediction(NamedTuple):
    """The prediction of one batch size, of the rank that needs the most memory."""

    prediction: ScriptPrediction
    card: CardPrediction

    @property
    def margin_gib(self) -> float:
        """Return the free memory of the card; negative if memory is missing."""
        return self.card.margin_gib

    def cells(self, samples: int | None) -> tuple[str | Text, ...]:
        """Return the cells of a row in a table of speeds and outcomes.

        samples: the number of samples in an optimizer step; None: unknown.
        """
        speed = step_cell(self.card), samples_cell(self.card, samples)
        peak, needed = self.prediction.peak_gib, self.card.needed_gib
        return *speed, *outcome_cells(self.card.outcome, peak=peak, needed=needed, margin=self.margin_gib)

    def speed_as_data(self, samples: int | None) -> dict[str, Any]:
        """Return the time of a step and the samples per second as a JSON-compatible object."""
        time = self.card.time
        return {"time": time.model_dump(mode="json") if time else None, **speed_as_data(self.card, samples)}


class ScriptFit(NamedTuple):
    """The result of a search for the largest batch.

    largest: the largest batch that fits. largest_borderline: the largest batch that fits or is borderline. Both are 0
    if a batch of 1 is too large. predictions: all predictions, by batch.
    """

    largest: int
    largest_borderline: int
    predictions: dict[int, BatchPrediction]

    @property
    def sample(self) -> str:
        """Return what a sample of a loop of --model is; '' for a script."""
        return next(iter(self.predictions.values())).prediction.sample


def read_batch(command: Sequence[str], flag: str) -> int | None:
    """Return the batch in a command, written `flag N` or `flag=N`; None if the command does not have the flag.

    Raises InputError if the value is not a number from 1 to LARGEST_BATCH.
    """
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name != flag:
            continue
        value = value if equals else "".join(command[index + 1 : index + 2])
        if not value.isdigit() or not 1 <= int(value) <= LARGEST_BATCH:
            raise InputError(f"{flag} {value}: not a batch size; allowed: 1 to {LARGEST_BATCH}")
        return int(value)
    return None


def set_batch(command: Sequence[str], flag: str, batch: int) -> list[str]:
    """Return the command with the value of ``flag`` set to ``batch``; the flag is appended if it is missing."""
    changed = list(command)
    for index, word in enumerate(command):
        if word == flag:
            changed[index + 1] = str(batch)
            return changed
        if word.startswith(f"{flag}="):
            changed[index] = f"{flag}={batch}"
            return changed
    return [*changed, flag, str(batch)]


def fit_batches(first: int, trace: TraceBatch) -> ScriptFit:
    """Search for the largest batch, beginning with ``first``, with few calls of ``trace``.

    ``trace`` predicts one batch for one card and returns a prediction for each rank.
    """
    batches = BatchSearch(first, lambda sizes: [prediction_with_highest_need(trace(batch)) for batch in sizes])
    usable = batches.predictions[first].card.usable_gib
    return ScriptFit(batches.largest_batch(BORDERLINE_SHARE * usable), batches.largest_batch(0.0), batches.predictions)


def prediction_with_highest_need(predictions: Sequence[ScriptPrediction]) -> BatchPrediction:
    """Return the prediction of the rank and GPU that needs the most memory."""
    return max((BatchPrediction(one, one.cards[0]) for one in predictions), key=lambda one: one.card.needed_gib)


def fit_as_data(fit: ScriptFit, batches_per_step: int | None = None) -> dict[str, Any]:
    """Return the result as a JSON-compatible object.

    batches_per_step: the number of batches in an optimizer step over all GPUs; None if it is unknown.
    """
    return {
        "card": next(iter(fit.predictions.values())).card.card,
        "largest_batch": fit.largest or None,
        "largest_batch_borderline": fit.largest_borderline or None,
        "batches": [
            {
                "batch": batch,
                "peak_gib": batch_prediction.prediction.peak_gib,
                "needed_gib": batch_prediction.card.needed_gib,
                "margin_gib": batch_prediction.margin_gib,
                "outcome": batch_prediction.card.outcome,
                **batch_prediction.speed_as_data(batches_per_step and batch * batches_per_step),
            }
            for batch, batch_prediction in sorted(fit.predictions.items())
        ],
    }


def fit_view(fit: ScriptFit, flag: str, batches_per_step: int | None = None) -> Group:
    """Return the result for the terminal, with every batch that was traced. batches_per_step: as in ``fit_as_data``."""
    columns = Column("batch", number=True), STEP_COLUMN, SAMPLES_COLUMN
    table = outcomes_table(*columns, title="GiB on one GPU, traced batches")
    for batch, one in sorted(fit.predictions.items()):
        table.add(str(batch), *one.cells(batches_per_step and batch * batches_per_step))
    lines = [_describe_largest_batch(fit, flag), *_describe_fastest(fit, flag, batches_per_step)]
    notes = dict.fromkeys(note for one in fit.predictions.values() for note in one.prediction.notes)
    notes |= dict.fromkeys(card_notes(one.card.card for one in fit.predictions.values()))
    notes |= dict.fromkeys(time_notes([one.prediction for one in fit.predictions.values()]))
    return Group(*(Text(line, "bold") for line in lines), table, *(Line(f"note: {note}", "yellow") for note in notes))


def _describe_fastest(fit: ScriptFit, flag: str, batches_per_step: int | None) -> list[str]:
    """Describe the fastest traced batch of those that fit.

    If ``batches_per_step`` is None, the speed is the batch size divided by the time of a step.
    """
    speeds = {
        f"{flag} {batch}": ((batches_per_step or 1) * batch / one.card.time.step_s, one.card.time)
        for batch, one in fit.predictions.items()
        if one.card.time and one.card.outcome == "fits"
    }
    return describe_fastest("traced batch", speeds, "samples/s" if batches_per_step else f"x {flag} per second")


def _describe_largest_batch(fit: ScriptFit, flag: str) -> str:
    card = next(iter(fit.predictions.values())).card
    where = f"{card.card}, {card.usable_gib:.2f} GiB usable"
    if not fit.largest_borderline:
        return f"{where}: not even {flag} 1 fits"
    borderline = f"; borderline up to {fit.largest_borderline}" if fit.largest_borderline > fit.largest else ""
    if not fit.largest:
        return f"{where}: no {flag} certainly fits{borderline}"
    end = " (larger batches were not tried)" if fit.largest == LARGEST_BATCH else ""
    return f"{where}: largest batch that fits: {flag} {fit.largest}{borderline}{end}"
