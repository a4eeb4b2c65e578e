"""Find the largest batch with which a training script fits a card."""

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

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
from experiments.prediction.script.trace import ScriptFailed
from experiments.results.predictions import BORDERLINE_SHARE
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import card_notes
from experiments.system.tables import Column, Line

FIRST_BATCH = 8
"""The batch that is tried first if the command does not name one."""
TrainingT = TypeVar("TrainingT", bound=Hashable)


class BatchPrediction(NamedTuple):
    """The prediction of one batch size, for the rank and GPU that need the most memory."""

    prediction: ScriptPrediction
    card: CardPrediction

    @property
    def margin_gib(self) -> float:
        """Return the free memory of the card; negative if memory is missing."""
        return self.card.margin_gib

    def cells(self, samples: int | None, note: str = "") -> tuple[str | Text, ...]:
        """Return the cells of a row in a table of speeds and outcomes.

        samples: the number of samples in an optimizer step; None: unknown.
        """
        speed = step_cell(self.card), samples_cell(self.card, samples)
        peak, needed = self.prediction.peak_gib, self.card.needed_gib
        return *speed, *outcome_cells(self.card.outcome, note, peak=peak, needed=needed, margin=self.margin_gib)

    def speed_as_data(self, samples: int | None) -> dict[str, Any]:
        """Return the time of a step and the samples per second as a JSON-compatible object."""
        time = self.card.time
        return {"time": time.model_dump(mode="json") if time else None, **speed_as_data(self.card, samples)}


class BatchFailure(NamedTuple):
    """A batch that could not be traced, and why: InputError, ScriptFailed or KeyboardInterrupt."""

    batch: int
    problem: BaseException


class ScriptFit(NamedTuple):
    """The result of a search for the largest batch on one card.

    largest: the largest batch that fits. largest_borderline: the largest batch that at least probably fits: the
    predicted memory is not larger than the card's. Both are 0 if a batch of 1 is too large. predictions: all
    predictions, by batch. failed: the batch that ended the search, because it could not be traced; ``largest`` and
    ``largest_borderline`` are then the largest of the traced batches.
    """

    largest: int
    largest_borderline: int
    predictions: dict[int, BatchPrediction]
    failed: BatchFailure | None = None

    @property
    def sample(self) -> str:
        """Return what a sample is, such as 'a text of 512 tokens'; '' for a user's script."""
        return next(iter(self.predictions.values())).prediction.sample

    @property
    def card(self) -> CardPrediction:
        """Return the prediction for the card with any of the batches, for values that do not depend on the batch."""
        return next(iter(self.predictions.values())).card

    def describe_batch(self, batch: int) -> str:
        """Return a note if the batch is the largest that fits or is borderline; '' for other batches."""
        if batch == self.largest:
            return "largest traced one that fits" if self.failed else "largest that fits"
        one = self.predictions[batch]
        if one.card.outcome != "borderline":
            return ""
        return "probably fits" if one.margin_gib >= 0 else "probably does not fit"


class SharedTraces(Generic[TrainingT]):
    """Predictions of trainings for several cards; cards with the same kernels share the trace of a training."""

    def __init__(
        self,
        card_names: Sequence[str],
        trace: Callable[[TrainingT, tuple[str, ...]], list[ScriptPrediction]],
    ) -> None:
        """Share traces between cards.

        trace: traces a training for a group of cards, and returns the prediction of each rank and GPU. It is called
        once for each training and group.
        """
        self._card_names = tuple(card_names)
        self._groups = [tuple(group) for group in group_by_kernels(card_names)]
        self.failures: list[BatchFailure] = []
        self._trace = functools.cache(_return_failures(trace))

    def predict(self, training: TrainingT, card: str) -> BatchPrediction:
        """Return the prediction for one card, of the rank and GPU that needs the most memory."""
        (group,) = (group for group in self._groups if card in group)
        predictions = self._trace(training, group)
        if isinstance(predictions, InputError | ScriptFailed):
            raise predictions
        found = (BatchPrediction(one, on_card) for one in predictions for on_card in one.cards if on_card.card == card)
        return max(found, key=lambda one: one.card.needed_gib)

    def fit_batches(self, first: int, with_batch: Callable[[int], TrainingT]) -> list[ScriptFit]:
        """Search for the largest batch for each card, beginning with the batch ``first``.

        with_batch: returns the training with a batch. A batch that cannot be traced ends the search for its card and is
        added to ``failures``. A card without any traced batch is left out. After Ctrl-C, the cards that follow are left
        out too. Raises InputError, ScriptFailed or KeyboardInterrupt if no card is left.
        """
        fits: dict[str, ScriptFit] = {}
        for group in self._groups:
            known: set[int] = set()
            for card in group:

                def predict(batch: int, card: str = card) -> BatchPrediction:
                    return self.predict(with_batch(batch), card)

                fit = _fit_card(first, predict, known)
                if fit.failed:
                    self.failures.append(fit.failed)
                if fit.predictions:
                    fits[card] = fit
                    known |= fit.predictions.keys()
                if fit.failed and isinstance(fit.failed.problem, KeyboardInterrupt):
                    break
            if self.failures and isinstance(self.failures[-1].problem, KeyboardInterrupt):
                break
        if not fits:
            self.raise_failure()
        return [fits[card] for card in self._card_names if card in fits]

    def raise_failure(self) -> None:
        """Raise the last failure of a batch, if there is one."""
        if self.failures:
            raise self.failures[-1].problem


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


def _fit_card(first: int, predict: Callable[[int], BatchPrediction], known: Iterable[int]) -> ScriptFit:
    """Search for the largest batch on one card with few predictions. known: batches that were traced already.

    A batch that cannot be traced ends the search.
    """
    found: dict[int, BatchPrediction] = {}

    def predict_all(sizes: Sequence[int]) -> list[BatchPrediction]:
        for batch in sizes:
            try:
                found[batch] = predict(batch)
            except (InputError, ScriptFailed, KeyboardInterrupt) as problem:
                raise _SearchEnded(BatchFailure(batch, problem)) from problem
        return [found[batch] for batch in sizes]

    try:
        batches = BatchSearch(first, predict_all, known)
        usable = found[first].card.usable_gib
        return ScriptFit(batches.largest_batch(BORDERLINE_SHARE * usable), batches.largest_batch(0.0), found)
    except _SearchEnded as ended:
        fitting = max((batch for batch, one in found.items() if one.card.outcome == "fits"), default=0)
        likely = max((batch for batch, one in found.items() if one.margin_gib >= 0), default=0)
        return ScriptFit(fitting, likely, found, ended.failure)


class _SearchEnded(Exception):
    """A batch could not be traced."""

    def __init__(self, failure: BatchFailure) -> None:
        super().__init__(str(failure.problem))
        self.failure = failure


def _return_failures(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that returns the InputError or ScriptFailed of ``trace``, so that failures are cached too."""

    def trace_or_fail(*arguments: Any) -> Any:
        try:
            return trace(*arguments)
        except (InputError, ScriptFailed) as problem:
            return problem

    return trace_or_fail


def fit_as_data(fit: ScriptFit, batches_per_step: int | None = None) -> dict[str, Any]:
    """Return the result of the search as a JSON-compatible object.

    batches_per_step: the number of batches in an optimizer step over all GPUs; None if it is unknown.
    """
    return {
        "card": fit.card.card,
        "largest_batch": fit.largest or None,
        "largest_batch_borderline": fit.largest_borderline or None,
        **({"failed": {"batch": fit.failed.batch, "reason": _reason(fit.failed)}} if fit.failed else {}),
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
    """Return the result for the terminal, with all traced batches. batches_per_step: as in ``fit_as_data``."""
    columns = Column("batch", number=True), STEP_COLUMN, SAMPLES_COLUMN
    table = outcomes_table(*columns, title="GiB on one GPU, traced batches")
    for batch, one in sorted(fit.predictions.items()):
        table.add(str(batch), *one.cells(batches_per_step and batch * batches_per_step, fit.describe_batch(batch)))
    largest = [f"{'' if fit.failed else 'largest '}batch that fits: {flag} {fit.largest}"] if fit.largest else []
    words = "; ".join([*largest, *_remarks(fit, flag)])
    lines = [
        f"{fit.card.card}, {fit.card.usable_gib:.2f} GiB usable: {words}",
        *_describe_fastest(fit, flag, batches_per_step),
    ]
    return Group(*(Text(line, "bold") for line in lines), table, *_note_lines([fit]))


def largest_batches_view(fits: Sequence[ScriptFit], flag: str) -> Group:
    """Return the results for several cards for the terminal: the largest batch for each, with its prediction.

    Without a batch that fits, the smallest traced batch is shown.
    """
    table = outcomes_table(
        "card", Column(flag, number=True), STEP_COLUMN, title=f"largest {flag} that fits each card, GiB on one GPU"
    )
    for fit in sorted(fits, key=lambda one: one.card.usable_gib):
        batch = fit.largest or min(fit.predictions)
        step, _, *sizes = fit.predictions[batch].cells(None, "; ".join(_remarks(fit, flag)))
        table.add(fit.card.card, str(fit.largest or "none"), step, *sizes)
    return Group(table, *_note_lines(fits))


def _remarks(fit: ScriptFit, flag: str) -> list[str]:
    """Return remarks on the largest batch that fits."""
    if fit.failed:
        traced = "the largest traced batch that fits" if fit.largest else "no traced batch certainly fits"
        return [f"{traced}; the search ended at {flag} {fit.failed.batch}: {_reason(fit.failed)}"]
    if not fit.largest_borderline:
        return [f"not even {flag} 1 fits"]
    remarks = [] if fit.largest else [f"no {flag} certainly fits"]
    if fit.largest_borderline > fit.largest:
        remarks.append(f"batches up to {fit.largest_borderline} probably fit (borderline)")
    return [*remarks, *(["larger batches were not tried"] if fit.largest == LARGEST_BATCH else [])]


def _reason(failed: BatchFailure) -> str:
    return "interrupted" if isinstance(failed.problem, KeyboardInterrupt) else str(failed.problem)


def _note_lines(fits: Sequence[ScriptFit]) -> list[Line]:
    predictions = [one.prediction for fit in fits for one in fit.predictions.values()]
    notes = dict.fromkeys(note for one in predictions for note in one.notes)
    notes |= dict.fromkeys(card_notes(fit.card.card for fit in fits)) | dict.fromkeys(time_notes(predictions))
    return [Line(f"note: {note}", "yellow") for note in notes]


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
