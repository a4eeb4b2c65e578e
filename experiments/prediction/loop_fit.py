"""The largest batch of a custom training in a traced program, and changes that make it fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.errors import InputError
from experiments.prediction.answers import answer, answers_table
from experiments.prediction.custom import CustomTraining
from experiments.prediction.fit import cheapest_pairs
from experiments.prediction.loop import changes, command
from experiments.prediction.script.fit import OneBatch, ScriptFit, fit_batches
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.trace import ScriptFailed, trace_script
from experiments.system.tables import Table

Say = Callable[[str], None]
Named = tuple[str, CustomTraining]
"""A changed training, with the change in words."""


class Attempt(NamedTuple):
    """The prediction of a training with one change; None if it cannot be trained so, with the reason."""

    change: str
    found: OneBatch | None
    reason: str = ""

    @property
    def fits(self) -> bool:
        """Return whether the training certainly fits with the change."""
        return self.found is not None and self.found.card.outcome == "fits"


def fit_program(training: CustomTraining, say: Say) -> ScriptFit:
    """Return the largest batch of the training that fits its card. Raises InputError and ScriptFailed as tracing."""
    return fit_batches(training.batch, lambda batch: _traced(replace(training, batch=batch), f"batch {batch}", say))


def attempts(training: CustomTraining, fit: ScriptFit, say: Say) -> list[Attempt]:
    """Return the single changes with their predictions, cheapest first; none if the training fits unchanged.

    If no single change fits, the cheapest pairs of changes that fit follow.
    """
    if fit.known[training.batch].card.outcome == "fits":
        return []
    offered = changes(training)
    singles = [_attempt(change, say) for change in offered]
    if any(one.fits for one in singles):
        return singles
    known = [changed for _, changed in offered]

    def both(cheaper: Named, dearer: Named) -> Named | None:
        changed = dict(changes(cheaper[1])).get(dearer[0])
        return None if changed is None or changed in known else (f"{cheaper[0]}; {dearer[0]}", changed)

    def fitting(pairs: Sequence[Named]) -> list[Attempt]:
        return [tried for pair in pairs if (tried := _attempt(pair, say)).fits]

    return [*singles, *cheapest_pairs(offered, both, fitting)]


def _attempt(change: Named, say: Say) -> Attempt:
    name, training = change
    try:
        (one,) = _traced(training, name, say)
    except (InputError, ScriptFailed) as problem:
        return Attempt(name, None, str(problem))
    return Attempt(name, OneBatch(one, one.cards[0]))


def _traced(training: CustomTraining, what: str, say: Say) -> list[ScriptPrediction]:
    return trace_script(command(training), [training.card], say, ScriptOptions(), f"{training.model}, {what}")


def attempts_as_data(tried: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Return the changes as plain data."""
    return [
        {
            "change": one.change,
            "outcome": one.found.card.outcome if one.found else None,
            "peak_gib": one.found.prediction.peak_gib if one.found else None,
            "needed_gib": one.found.card.needed_gib if one.found else None,
            "reason": one.reason,
        }
        for one in tried
    ]


def attempts_table(tried: Sequence[Attempt]) -> Table | str:
    """Return the changes as a table; an empty line if there are none."""
    if not tried:
        return ""
    table = answers_table("change", title="GiB on one GPU, same batch", note="reason")
    for one in tried:
        table.add(one.change, *(one.found.cells() if one.found else answer("not possible", one.reason)))
    return table
