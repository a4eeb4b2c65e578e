"""The largest batch with which a training script fits a card."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from experiments.errors import InputError
from experiments.prediction.answers import answer, answers_table
from experiments.prediction.batches import LARGEST_BATCH, Batches
from experiments.prediction.script.record import CardAnswer, ScriptPrediction
from experiments.results.predictions import BORDERLINE_SHARE
from experiments.suites.cards import card_notes
from experiments.system.tables import Column

FIRST_BATCH = 8
"""The batch that is tried first if the command does not name one."""
Trace = Callable[[int], list[ScriptPrediction]]


class OneBatch(NamedTuple):
    """The prediction of one batch: the rank that needs the most."""

    prediction: ScriptPrediction
    card: CardAnswer

    @property
    def margin_gib(self) -> float:
        """Return the memory of the card that stays free; negative if memory is missing."""
        return self.card.margin_gib

    def cells(self) -> tuple[str | Text, ...]:
        """Return the cells of a table of answers."""
        peak, needed = self.prediction.peak_gib, self.card.needed_gib
        return answer(self.card.outcome, peak=peak, needed=needed, margin=self.margin_gib)


class ScriptFit(NamedTuple):
    """The largest batch that fits, and the largest that probably fits; 0: not even 1 does. known: by batch."""

    largest: int
    likely: int
    known: dict[int, OneBatch]


def batch_in(words: Sequence[str], flag: str) -> int | None:
    """Return the batch that a command names, as `flag N` or `flag=N`; None if it does not have the flag.

    Raises InputError if a number is missing.
    """
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != flag:
            continue
        value = value if equals else "".join(words[place + 1 : place + 2])
        if not value.isdigit() or not 1 <= int(value) <= LARGEST_BATCH:
            raise InputError(f"{flag} {value}: a batch from 1 to {LARGEST_BATCH} is needed")
        return int(value)
    return None


def with_batch(words: Sequence[str], flag: str, batch: int) -> list[str]:
    """Return the command with that batch, where it names one, else at its end."""
    changed = list(words)
    for place, word in enumerate(words):
        if word == flag:
            changed[place + 1] = str(batch)
            return changed
        if word.startswith(f"{flag}="):
            changed[place] = f"{flag}={batch}"
            return changed
    return [*changed, flag, str(batch)]


def fit_batches(first: int, trace: Trace) -> ScriptFit:
    """Return the largest batch, found with few calls of ``trace``, which predicts one batch for one card."""

    def highest(batch: int) -> OneBatch:
        return max((OneBatch(one, one.cards[0]) for one in trace(batch)), key=lambda one: one.card.needed_gib)

    batches = Batches(first, lambda sizes: [highest(batch) for batch in sizes])
    usable = batches.known[first].card.usable_gib
    return ScriptFit(batches.last(BORDERLINE_SHARE * usable), batches.last(0.0), batches.known)


def fit_as_data(fit: ScriptFit) -> dict[str, Any]:
    """Return the answer as plain data."""
    return {
        "card": next(iter(fit.known.values())).card.card,
        "largest_batch": fit.largest or None,
        "largest_batch_borderline": fit.likely or None,
        "batches": [
            {
                "batch": batch,
                "peak_gib": one.prediction.peak_gib,
                "needed_gib": one.card.needed_gib,
                "margin_gib": one.margin_gib,
                "outcome": one.card.outcome,
            }
            for batch, one in sorted(fit.known.items())
        ],
    }


def fit_view(fit: ScriptFit, flag: str) -> Group:
    """Return the answer for the terminal, with every batch that was traced."""
    table = answers_table(Column("batch", number=True), title="GiB on one GPU, traced batches")
    for batch, one in sorted(fit.known.items()):
        table.add(str(batch), *one.cells())
    notes = dict.fromkeys(note for one in fit.known.values() for note in one.prediction.notes)
    notes |= dict.fromkeys(card_notes(one.card.card for one in fit.known.values()))
    return Group(Text(_in_words(fit, flag), "bold"), table, *(Text(f"note: {note}", "yellow") for note in notes))


def _in_words(fit: ScriptFit, flag: str) -> str:
    card = next(iter(fit.known.values())).card
    where = f"{card.card}, {card.usable_gib:.2f} GiB usable"
    if not fit.likely:
        return f"{where}: not even {flag} 1 fits"
    borderline = f"; borderline up to {fit.likely}" if fit.likely > fit.largest else ""
    end = " (larger batches were not tried)" if fit.largest == LARGEST_BATCH else ""
    return f"{where}: largest batch that fits: {flag} {fit.largest or 'none for certain'}{borderline}{end}"
