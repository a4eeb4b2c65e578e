"""The largest batch of a custom training in a traced program, and single changes that make it fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rich.text import Text

from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import changes, command
from experiments.prediction.script.fit import OneBatch, ScriptFit, fit_batches
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.trace import ScriptFailed, trace_script
from experiments.prediction.script.view import STYLES
from experiments.system.tables import Column, Table

Say = Callable[[str], None]


class Attempt(NamedTuple):
    """The prediction of a training with one change; None if it cannot be trained so, with the reason."""

    change: str
    found: OneBatch | None
    reason: str = ""


def fit_program(training: CustomTraining, say: Say) -> ScriptFit:
    """Return the largest batch of the training that fits its card. Raises InputError and ScriptFailed as tracing."""
    return fit_batches(training.batch, lambda batch: _traced(replace(training, batch=batch), f"batch {batch}", say))


def attempts(training: CustomTraining, fit: ScriptFit, say: Say) -> list[Attempt]:
    """Return the single changes with their predictions, cheapest first; none if the training fits unchanged."""
    if fit.known[training.batch].card.outcome == "fits":
        return []
    return [_attempt(name, changed, say) for name, changed in changes(training)]


def _attempt(name: str, training: CustomTraining, say: Say) -> Attempt:
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
    table = Table(
        "single change",
        *(Column(name, number=True) for name in ("peak", "needed", "margin")),
        "outcome",
        title="GiB on one GPU, same batch",
    )
    for one in tried:
        if one.found is None:
            table.add(one.change, "", "", "", one.reason)
            continue
        card = one.found.card
        sizes = (f"{one.found.prediction.peak_gib:.2f}", f"{card.needed_gib:.2f}", f"{card.margin_gib:+.2f}")
        table.add(one.change, *sizes, Text(card.outcome, STYLES[card.outcome]))
    return table
