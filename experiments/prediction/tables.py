"""Show predictions, and what fits a card, as tables for the terminal; return both as JSON-compatible objects."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.text import Text

from experiments.prediction.batches import LARGEST_BATCH
from experiments.prediction.fit import Attempt, Fit, fits
from experiments.prediction.outcome_tables import STYLES, format_gib, outcome_cells, outcomes_table
from experiments.prediction.predict import CUSTOM_SUITE
from experiments.prediction.script.speed import describe_fastest, source_notes
from experiments.results.memory_parts import ACTIVATIONS, BUFFERS, OPTIMIZER_CPU, PARAMETERS, PART_COLUMNS, MemoryPart
from experiments.results.predictions import RULE_OF_THUMB_FACTOR, Prediction
from experiments.results.wording import OUTCOME_NAMES, format_number
from experiments.suites.cards import card_named, card_notes, software_bf16_notes
from experiments.suites.suite import ExpectedOutcome, suite_named
from experiments.system.tables import Column, Legend, Line, Table

SMALLEST_SHOWN_GIB = 0.005
SINGLE_CHANGES_TITLE = "single changes, cheapest first, GiB on one GPU"
PAIRS_TITLE = "no single change fits; the cheapest pairs that fit, GiB on one GPU"
OMITTED_FIELDS = {
    "prediction_version",
    "spec",
    "parameters",
    "trainable_parameters",
    "memory",
    "tflop_per_sample",
    "versions",
    "elapsed_s",
}
UNIT = "GiB on one GPU"
MARGIN_MEANING = "margin: free memory of the card, negative if memory is missing"
STEP_MEANING = "step: time of an optimizer step"
COMPILATION_NOTE = (
    "compiled rows are predicted without compilation: their memory is an upper bound, their time is unknown"
)
RULE_OF_THUMB_MEANING = (
    f"{RULE_OF_THUMB_FACTOR}x: the rule of thumb, {RULE_OF_THUMB_FACTOR} times the memory of the parameters"
)
PART_MEANINGS = {
    PARAMETERS: f"{PARAMETERS.short} to {BUFFERS.short}: the parts of the peak",
    ACTIVATIONS: f"{ACTIVATIONS.short}: activations and temporaries",
    OPTIMIZER_CPU: f"{OPTIMIZER_CPU.short}: optimizer state in host memory",
}


def part_columns(optional: int = 0) -> list[Column]:
    """Return a column for each part of the peak, with its meaning. optional: see ``Column``."""
    return [
        Column(part.short, number=True, optional=optional, meaning=PART_MEANINGS.get(part, "")) for part in PART_COLUMNS
    ]


def expected_outcome(prediction: Prediction) -> ExpectedOutcome | None:
    """Return the row's expected outcome; None if the suite states none, or for a custom training."""
    spec = prediction.spec
    return None if spec.suite == CUSTOM_SUITE else suite_named(spec.suite).row(spec.row).expect.outcome


def twin_note(prediction: Prediction) -> str:
    """Return 'scaled to 12 GB' if the row was made smaller for its card; '' for other rows and custom trainings."""
    spec = prediction.spec
    return "" if spec.suite == CUSTOM_SUITE else suite_named(spec.suite).twin_note(spec.row, spec.card)


def prediction_as_data(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as one flat object; sizes in GiB on one GPU."""
    spec, expected = prediction.spec, expected_outcome(prediction)
    return {
        "suite": spec.suite,
        "row": spec.row,
        "card": spec.card,
        "scaled": twin_note(prediction),
        "model": spec.settings.model,
        "params": prediction.parameters,
        "trainable_params": prediction.trainable_parameters,
        **prediction.model_dump(mode="json", exclude=OMITTED_FIELDS),
        "samples_per_s": prediction.samples_per_s,
        "limited_by": prediction.time.limited_by if prediction.time else None,
        "margin_gib": prediction.margin_gib,
        "verdict": prediction.predicted_outcome,
        "expected": expected,
        "bf16_emulated": emulates_bf16(prediction),
        "agrees": expected == prediction.likely_outcome if expected else None,
        "rule_of_thumb_gib": prediction.rule_of_thumb_gib,
        "settings": spec.settings.model_dump(mode="json"),
    }


def note_lines(predictions: Sequence[Prediction], timed: Sequence[Prediction]) -> list[Line]:
    """Return notes, each once: on missing bf16 arithmetic, on compiled rows, those of cards.yaml, and on times.

    timed: the predictions whose times are shown if they fit.
    """
    slow = software_bf16_notes(one.spec.card for one in predictions if emulates_bf16(one))
    compiled = [COMPILATION_NOTE] if any(one.spec.settings.compile for one in predictions) else []
    times = source_notes([one.time for one in timed if one.time and one.likely_outcome == "fits"])
    lines = [*slow, *compiled, *card_notes(one.spec.card for one in predictions), *times]
    return [Line(f"note: {line}", "yellow") for line in lines]


def emulates_bf16(prediction: Prediction) -> bool:
    """Return whether the card lacks the bfloat16 arithmetic that the training uses."""
    spec = prediction.spec
    return card_named(spec.card).computes_in_software(spec.settings.precision)


def prediction_tables(predictions: Sequence[Prediction]) -> Group:
    """Return a table for each suite and card, and a legend of the columns."""
    groups = groupby(predictions, key=lambda one: (one.spec.suite, one.spec.card, one.usable_gib))
    tables = [
        _suite_table(f"{suite}, {card}: {usable:.2f} GiB usable", [*group]) for (suite, card, usable), group in groups
    ]
    return Group(*tables, *note_lines(predictions, predictions), Legend(UNIT, *tables))


def _suite_table(title: str, predictions: Sequence[Prediction]) -> Table:
    spec = predictions[0].spec
    note = (
        suite_named(spec.suite).note_on_scaled_rows([one.spec.row for one in predictions], spec.card)
        if spec.suite != CUSTOM_SUITE
        else ""
    )
    table = Table(
        "row",
        Column("peak", number=True),
        Column("margin", number=True, meaning=MARGIN_MEANING),
        "outcome",
        "stated",
        Column("step", number=True, optional=1, meaning=STEP_MEANING),
        Column("limited by", optional=2),
        Column("reserved", number=True, optional=1),
        Column("peak in", optional=2),
        *part_columns(optional=3),
        Column(f"{RULE_OF_THUMB_FACTOR}x", number=True, optional=4, meaning=RULE_OF_THUMB_MEANING),
        title=", ".join(filter(None, (title, note))),
    )
    all_ranks = any(one.rank for one in predictions)
    for one in predictions:
        table.add(
            f"{one.spec.row}, rank {one.rank}" if all_ranks else one.spec.row,
            format_gib(one.peak_gib),
            f"{one.margin_gib:+.2f}",
            Text(one.predicted_outcome, STYLES[one.predicted_outcome]),
            _lab_cell(one),
            *_step_cells(one),
            format_gib(one.reserved_gib),
            f"{one.peak_phase}, step {one.peak_step}",
            *(format_part(one, part) for part in PART_COLUMNS),
            format_gib(one.rule_of_thumb_gib),
        )
    return table


def format_part(prediction: Prediction, part: MemoryPart) -> str:
    """Format one part of the peak in GiB; '' for host memory that is not used."""
    if part != OPTIMIZER_CPU:
        return format_gib(getattr(prediction.at_peak, part.field))
    return format_gib(prediction.optimizer_cpu_gib) if prediction.optimizer_cpu_gib >= SMALLEST_SHOWN_GIB else ""


def compare_with_lab(prediction: Prediction) -> str:
    """Describe the predicted outcome compared with the lab, such as 'out of GPU memory, as the lab states'."""
    expected, likely = expected_outcome(prediction), prediction.likely_outcome
    doubt = "borderline, more likely " if prediction.predicted_outcome == "borderline" else ""
    words = f"{doubt}{OUTCOME_NAMES[likely]}"
    if expected is None:
        return words
    scale = f" ({scaled})" if (scaled := twin_note(prediction)) else ""
    return (
        f"{words}, as the lab states{scale}"
        if expected == likely
        else f"{words}, but the lab states: {OUTCOME_NAMES[expected]}{scale}"
    )


def _lab_cell(prediction: Prediction) -> Text:
    expected = expected_outcome(prediction)
    if expected is None:
        return Text("")
    if expected == prediction.likely_outcome:
        return Text(f"{expected}: agrees")
    return Text(f"{expected}: differs", "bold red")


def _step_cells(prediction: Prediction) -> tuple[str, str]:
    """Format the time of an optimizer step with its error, and what limits it.

    Both are '' if the time is not predicted, or if the row does not fit.
    """
    time = prediction.time
    if time is None or prediction.likely_outcome != "fits":
        return "", ""
    return time.words, time.limited_by


def fit_as_data(fit: Fit) -> dict[str, Any]:
    """Return the result of ``fit_row`` as JSON-compatible data.

    The fields of the requested row's prediction are at the top level. A largest batch of 0 means that not even a batch
    of 1 fits.
    """
    return {
        **prediction_as_data(fit.requested),
        "batch": fit.requested.spec.settings.batch_size,
        "largest_batch": _batch_size(fit.largest),
        "largest_batch_peak_gib": fit.largest.peak_gib if fit.largest else None,
        "largest_batch_borderline": _batch_size(fit.largest_borderline),
        "changes": [*map(_attempt_as_data, fit.changes)],
        "pairs": [*map(_attempt_as_data, fit.pairs)],
    }


def _attempt_as_data(attempt: Attempt) -> dict[str, Any]:
    data = {"change": attempt.change, "cost": attempt.cost, "reason": attempt.reason}
    if attempt.prediction is None:
        return {**data, "verdict": None}
    names = ("peak_gib", "reserved_gib", "needed_gib", "margin_gib", "optimizer_cpu_gib")
    sizes = {name: getattr(attempt.prediction, name) for name in names}
    speed = {"samples_per_s": attempt.prediction.samples_per_s}
    return {**data, "verdict": attempt.prediction.predicted_outcome, **sizes, **speed}


def fit_view(fit: Fit) -> Group:
    """Return the result of ``fit_row`` for the terminal: the requested row, the largest batch, and the tried changes.

    Pairs of changes follow if no single change fits.
    """
    requested = fit.requested
    spec = requested.spec
    lines = [
        f"{spec.row} on {spec.card}, batch {spec.settings.batch_size}: {requested.predicted_outcome}, "
        f"needs {requested.needed_gib:.2f} of {requested.usable_gib:.2f} GiB ({requested.margin_gib:+.2f})",
        _describe_largest_batch(fit),
    ]
    tables = [
        *([_attempts_table(SINGLE_CHANGES_TITLE, fit.changes)] if fit.changes else []),
        *([_attempts_table(PAIRS_TITLE, fit.pairs)] if fit.pairs else []),
    ]
    if fit.changes and not any(map(fits, (*fit.changes, *fit.pairs))):
        lines.append("no change and no pair of changes makes the row fit")
    lines += _describe_fastest((*fit.changes, *fit.pairs))
    timed = [one.prediction for one in (*fit.changes, *fit.pairs) if fits(one) and one.prediction]
    return Group(*(Text(line) for line in lines), *tables, *note_lines([requested], timed))


def _describe_largest_batch(fit: Fit) -> str:
    if fit.largest_borderline is None:
        return "not even a batch of 1 fits"
    if fit.largest is None:
        return f"no batch certainly fits; batches up to {_batch_size(fit.largest_borderline)} probably fit (borderline)"
    words = f"largest batch that fits: {_batch_size(fit.largest)}, peak {fit.largest.peak_gib:.2f} GiB"
    if _batch_size(fit.largest_borderline) > _batch_size(fit.largest):
        words += f"; batches up to {_batch_size(fit.largest_borderline)} probably fit (borderline)"
    return f"{words} (larger batches were not tried)" if _batch_size(fit.largest_borderline) == LARGEST_BATCH else words


def _describe_fastest(attempts: Iterable[Attempt]) -> list[str]:
    """Return a line that names the fastest change that fits; [] if fewer than two changes have a predicted speed."""
    speeds = {
        attempt.change: (attempt.prediction.samples_per_s, attempt.prediction.time)
        for attempt in attempts
        if fits(attempt) and attempt.prediction and attempt.prediction.samples_per_s and attempt.prediction.time
    }
    return describe_fastest("change", speeds, "samples/s")


def _attempts_table(title: str, attempts: Iterable[Attempt]) -> Table:
    change, speed = Column("change", prose=title == PAIRS_TITLE), Column("samples/s", number=True, optional=1)
    table = outcomes_table(change, speed, title=title, note="cost")
    for attempt in attempts:
        prediction = attempt.prediction
        if prediction is None:
            table.add(attempt.change, "", *outcome_cells("not possible", attempt.reason))
            continue
        host = prediction.optimizer_cpu_gib
        cost = f"{attempt.cost} ({host:.0f} GiB of it)" if host >= SMALLEST_SHOWN_GIB else attempt.cost
        sizes = outcome_cells(
            prediction.predicted_outcome, cost, peak=prediction.peak_gib, margin=prediction.margin_gib
        )
        samples_per_s = prediction.samples_per_s if fits(attempt) else None
        table.add(attempt.change, "" if samples_per_s is None else format_number(samples_per_s), *sizes)
    return table


def _batch_size(prediction: Prediction | None) -> int:
    return prediction.spec.settings.batch_size if prediction else 0
