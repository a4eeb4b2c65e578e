"""Show the predictions of a custom training: its settings, the outcome for each card and batch, the smallest card."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from experiments.prediction.outcome_tables import format_gib, outcome_cells, outcomes_table
from experiments.prediction.script.speed import SAMPLES_COLUMN, STEP_COLUMN, describe_step, source_notes
from experiments.prediction.tables import UNIT, format_part, note_lines, part_columns, prediction_as_data
from experiments.results.memory_parts import PART_COLUMNS
from experiments.results.predictions import Prediction
from experiments.results.wording import format_number, format_parameter_count
from experiments.system.tables import Column, Legend, Line, Table


def describe_custom_training(prediction: Prediction) -> str:
    """Describe the training in one line: model, tokens, precision, optimizer and other settings, without the batch."""
    settings = prediction.spec.settings
    parts = [
        f"{settings.model} ({format_parameter_count(prediction.parameters)} parameters)",
        f"{settings.max_length} tokens",
        settings.precision,
        settings.optimizer,
        f"{settings.devices} GPUs, {settings.strategy}" if settings.devices > 1 else "1 GPU",
    ]
    if settings.devices == 1 and settings.strategy != "auto":
        parts.append(settings.strategy)
    if settings.accumulate > 1:
        parts.append(f"accumulated {settings.accumulate} times")
    if settings.activation_checkpointing:
        parts.append("activation checkpointing")
    if settings.lora:
        parts.append(f"LoRA of rank {settings.lora.r}")
    return ", ".join(parts)


def custom_predictions_as_data(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return a single prediction as one object; several predictions with the smallest card that fits, by batch."""
    data = [prediction_as_data(prediction) for prediction in predictions]
    return data[0] if len(data) == 1 else {"smallest_card": smallest_cards(predictions), "predictions": data}


def smallest_cards(predictions: Iterable[Prediction]) -> dict[int, str | None]:
    """Return, by batch, the smallest card that the training fits; None if it fits no card."""
    card_by_batch: dict[int, str | None] = {}
    for prediction in sorted(predictions, key=lambda prediction: prediction.usable_gib):
        batch, fits = prediction.spec.settings.batch_size, prediction.predicted_outcome == "fits"
        card_by_batch[batch] = card_by_batch.get(batch) or (prediction.spec.card if fits else None)
    return dict(sorted(card_by_batch.items()))


def custom_predictions_view(predictions: Sequence[Prediction]) -> Group:
    """Return the training's description and a table of cards and batches.

    For one card, it also shows the parts of the peak and what limits a step; for several, the smallest card that fits.
    """
    has_one_card = len({one.spec.card for one in predictions}) == 1
    ordered = sorted(predictions, key=lambda one: (one.usable_gib, one.spec.settings.batch_size))
    parts = _parts_table(ordered)
    card_lines = [parts, Legend(UNIT, parts)] if has_one_card else _smallest_card_lines(ordered)
    timed = [one for one in ordered if one.time and one.likely_outcome == "fits"]
    steps = [Text(_describe_step(one)) for one in timed] if has_one_card else []
    notes = [Line(f"note: {note}", "yellow") for note in source_notes([one.time for one in timed if one.time])]
    title = Text(describe_custom_training(ordered[0]), "bold")
    return Group(title, *steps, _cards_table(ordered), *card_lines, *note_lines(ordered), *notes)


def _describe_step(prediction: Prediction) -> str:
    assert prediction.time
    step = describe_step(prediction.time, prediction.spec.card, prediction.samples_per_s)
    return f"batch {prediction.spec.settings.batch_size}: {step}"


def _smallest_card_lines(predictions: Sequence[Prediction]) -> list[Text]:
    card_by_batch = smallest_cards(predictions)
    lines = [
        f"batch {batch}: smallest card that fits: {card}" if card else f"batch {batch}: fits none of these cards"
        for batch, card in card_by_batch.items()
    ]
    return [Text(line, "bold") for line in lines]


def _cards_table(predictions: Iterable[Prediction]) -> Table:
    columns = "card", Column("batch", number=True), STEP_COLUMN, SAMPLES_COLUMN
    table = outcomes_table(*columns, title="GiB on one GPU")
    for prediction in predictions:
        fits = prediction.likely_outcome == "fits"
        speed = format_number(prediction.samples_per_s) if fits and prediction.samples_per_s else ""
        cells = outcome_cells(
            prediction.predicted_outcome,
            needed=prediction.needed_gib,
            usable=prediction.usable_gib,
            margin=prediction.margin_gib,
        )
        step = prediction.time.words if fits and prediction.time else ""
        table.add(prediction.spec.card, str(prediction.spec.settings.batch_size), step, speed, *cells)
    return table


def _parts_table(predictions: Iterable[Prediction]) -> Table:
    table = Table(
        Column("batch", number=True),
        *part_columns(),
        Column("peak", number=True),
        Column("reserved", number=True),
        Column("peak in", optional=1),
    )
    for prediction in predictions:
        sizes = (
            *(format_part(prediction, part) for part in PART_COLUMNS),
            format_gib(prediction.peak_gib),
            format_gib(prediction.reserved_gib),
        )
        table.add(
            str(prediction.spec.settings.batch_size), *sizes, f"{prediction.peak_phase}, step {prediction.peak_step}"
        )
    return table
