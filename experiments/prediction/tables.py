"""Predictions and fits, as tables for the terminal and as plain data."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.text import Text

from experiments.prediction.answers import STYLES, answer, answers_table, gib
from experiments.prediction.batches import LARGEST_BATCH
from experiments.prediction.fit import Attempt, Fit, fits
from experiments.prediction.predict import CUSTOM
from experiments.results.memory_parts import ACTIVATIONS, BUFFERS, OPTIMIZER_CPU, PARAMETERS, PART_COLUMNS, MemoryPart
from experiments.results.predictions import RULE_OF_THUMB_FACTOR, Prediction
from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.cards import card_named, card_notes
from experiments.suites.suite import ExpectedOutcome, suite_named
from experiments.system.tables import Column, Table

SHOWN_GIB = 0.005
SINGLE = "single changes, cheapest first, GiB on one GPU"
PAIRS = "no single change fits; the cheapest pairs that fit, GiB on one GPU"
NOT_SHOWN = {
    "prediction_version",
    "spec",
    "parameters",
    "trainable_parameters",
    "memory",
    "tflop_per_sample",
    "versions",
    "elapsed_s",
}
PARTS_LEGEND = (
    f"GiB on one GPU. {PARAMETERS.short} to {BUFFERS.short}: the parts of the peak;"
    f" {ACTIVATIONS.short}: activations and temporaries; {OPTIMIZER_CPU.short}:"
    " optimizer state in host memory"
)
LEGEND = (
    f"{PARTS_LEGEND}; margin: free memory of the card, negative if memory is missing;"
    f" {RULE_OF_THUMB_FACTOR} x: the rule of thumb, {RULE_OF_THUMB_FACTOR} times the model."
)


def expected_of(prediction: Prediction) -> ExpectedOutcome | None:
    """Return the row's expected outcome; None if the suite states none, or for a custom training."""
    spec = prediction.spec
    return None if spec.suite == CUSTOM else suite_named(spec.suite).row(spec.row).expect.outcome


def prediction_as_data(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as one flat object; sizes in GiB on one GPU."""
    spec, expected = prediction.spec, expected_of(prediction)
    return {
        "suite": spec.suite,
        "row": spec.row,
        "card": spec.card,
        "model": spec.settings.model,
        "params": prediction.parameters,
        "trainable_params": prediction.trainable_parameters,
        **prediction.model_dump(mode="json", exclude=NOT_SHOWN),
        "margin_gib": prediction.margin_gib,
        "verdict": prediction.predicted_outcome,
        "expected": expected,
        "bf16_emulated": emulates_bf16(prediction),
        "agrees": expected == prediction.likely_outcome if expected else None,
        "rule_of_thumb_gib": prediction.rule_of_thumb_gib,
        "settings": spec.settings.model_dump(mode="json"),
    }


def noted(predictions: Sequence[Prediction]) -> list[Text]:
    """Return what a reader has to know beside the numbers, each once."""
    emulating = [*dict.fromkeys(one.spec.card for one in predictions if emulates_bf16(one))]
    has = "has" if len(emulating) == 1 else "have"
    slow = f"{', '.join(emulating)} {has} no bf16 arithmetic: PyTorch emulates it, slowly; memory is as predicted"
    lines = [*([slow] if emulating else []), *card_notes(one.spec.card for one in predictions)]
    return [Text(f"note: {line}", "yellow") for line in lines]


def emulates_bf16(prediction: Prediction) -> bool:
    """Return whether the card lacks the bfloat16 arithmetic that the training uses."""
    spec = prediction.spec
    return spec.settings.precision.startswith("bf16") and "bf16" not in card_named(spec.card).peak_tflops


def prediction_tables(predictions: Sequence[Prediction]) -> Group:
    """Return a table for each suite and card, and a legend of the columns."""
    places = groupby(predictions, key=lambda one: (one.spec.suite, one.spec.card, one.usable_gib))
    tables = [_table(f"{suite}, {card}: {usable:.2f} GiB usable", own) for (suite, card, usable), own in places]
    return Group(*tables, *noted(predictions), Text(LEGEND, "dim"))


def _table(title: str, predictions: Iterable[Prediction]) -> Table:
    table = Table(
        "row",
        Column("peak", number=True),
        Column("margin", number=True),
        "outcome",
        "stated",
        Column("reserved", number=True, optional=1),
        Column("peak in", optional=2),
        *(Column(part.short, number=True, optional=3) for part in PART_COLUMNS),
        Column(f"{RULE_OF_THUMB_FACTOR} x", number=True, optional=4),
        title=title,
    )
    for one in predictions:
        table.add(
            one.spec.row,
            gib(one.peak_gib),
            f"{one.margin_gib:+.2f}",
            Text(one.predicted_outcome, STYLES[one.predicted_outcome]),
            _stated(one),
            gib(one.reserved_gib),
            f"{one.peak_phase}, step {one.peak_step}",
            *(part_of(one, part) for part in PART_COLUMNS),
            gib(one.rule_of_thumb_gib),
        )
    return table


def part_of(prediction: Prediction, part: MemoryPart) -> str:
    """Format one part of the peak, GiB; nothing for host memory that is not used."""
    if part != OPTIMIZER_CPU:
        return gib(getattr(prediction.at_peak, part.field))
    return gib(prediction.optimizer_cpu_gib) if prediction.optimizer_cpu_gib >= SHOWN_GIB else ""


def beside_stated(prediction: Prediction) -> str:
    """Return the predicted outcome and how it compares with the lab: 'out of GPU memory, as stated'."""
    expected, likely = expected_of(prediction), prediction.likely_outcome
    doubt = "borderline, more likely " if prediction.predicted_outcome == "borderline" else ""
    words = f"{doubt}{OUTCOME_NAMES[likely]}"
    if expected is None:
        return words
    return f"{words}, as stated" if expected == likely else f"{words}, but stated: {OUTCOME_NAMES[expected]}"


def _stated(prediction: Prediction) -> Text:
    expected = expected_of(prediction)
    if expected is None:
        return Text("")
    if expected == prediction.likely_outcome:
        return Text(f"{expected}: agrees")
    return Text(f"{expected}: differs", "bold red")


def fit_as_data(fit: Fit) -> dict[str, Any]:
    """Return a fit as one flat object; a batch of 0 means that even a batch of 1 does not fit."""
    return {
        **prediction_as_data(fit.asked),
        "batch": fit.asked.spec.settings.batch_size,
        "largest_batch": _batch(fit.largest),
        "largest_batch_peak_gib": fit.largest.peak_gib if fit.largest else None,
        "largest_batch_borderline": _batch(fit.likely),
        "changes": [*map(_attempt_as_data, fit.changes)],
        "pairs": [*map(_attempt_as_data, fit.pairs)],
    }


def _attempt_as_data(attempt: Attempt) -> dict[str, Any]:
    data = {"change": attempt.change, "cost": attempt.cost, "reason": attempt.reason}
    if attempt.prediction is None:
        return {**data, "verdict": None}
    names = ("peak_gib", "reserved_gib", "needed_gib", "margin_gib", "optimizer_cpu_gib")
    sizes = {name: getattr(attempt.prediction, name) for name in names}
    return {**data, "verdict": attempt.prediction.predicted_outcome, **sizes}


def fit_view(fit: Fit) -> Group:
    """Return a fit for the terminal: the requested row, the largest batch, and the changes that help or do not.

    Pairs of changes follow if no single one fits.
    """
    asked = fit.asked
    spec = asked.spec
    lines = [
        f"{spec.row} on {spec.card}, batch {spec.settings.batch_size}: {asked.predicted_outcome}, "
        f"needs {asked.needed_gib:.2f} of {asked.usable_gib:.2f} GiB ({asked.margin_gib:+.2f})",
        _largest_in_words(fit),
    ]
    tables = [
        *([_attempts_table(SINGLE, fit.changes)] if fit.changes else []),
        *([_attempts_table(PAIRS, fit.pairs)] if fit.pairs else []),
    ]
    if fit.changes and not any(map(fits, (*fit.changes, *fit.pairs))):
        lines.append("no change and no pair of changes fits")
    return Group(*(Text(line) for line in lines), *tables, *noted([asked]))


def _largest_in_words(fit: Fit) -> str:
    if fit.likely is None:
        return "not even a batch of 1 fits"
    if fit.largest is None:
        return f"no batch certainly fits; borderline up to {_batch(fit.likely)}"
    words = f"largest batch that fits: {_batch(fit.largest)}, peak {fit.largest.peak_gib:.2f} GiB"
    if _batch(fit.likely) > _batch(fit.largest):
        words += f"; borderline up to {_batch(fit.likely)}"
    return f"{words} (larger batches were not tried)" if _batch(fit.likely) == LARGEST_BATCH else words


def _attempts_table(title: str, attempts: Iterable[Attempt]) -> Table:
    table = answers_table(Column("change", prose=title == PAIRS), title=title, note="cost")
    for one in attempts:
        found = one.prediction
        if found is None:
            table.add(one.change, *answer("not possible", one.reason))
            continue
        host = found.optimizer_cpu_gib
        cost = f"{one.cost} ({host:.0f} GiB of it)" if host >= SHOWN_GIB else one.cost
        sizes = answer(found.predicted_outcome, cost, peak=found.peak_gib, margin=found.margin_gib)
        table.add(one.change, *sizes)
    return table


def _batch(prediction: Prediction | None) -> int:
    return prediction.spec.settings.batch_size if prediction else 0
