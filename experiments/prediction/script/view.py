"""Show the predictions of a training script in the terminal, and return them as JSON-compatible objects."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from experiments.prediction.outcome_tables import outcome_cells, outcomes_table
from experiments.prediction.script.record import (
    CardPrediction,
    LineMemory,
    ModuleMemory,
    ScriptPrediction,
    smallest_card,
)
from experiments.prediction.script.speed import (
    SAMPLES_COLUMN,
    STEP_COLUMN,
    describe_time,
    samples_cell,
    speed_as_data,
    step_cell,
    time_notes,
)
from experiments.results.memory_parts import PARTS_OF_SCRIPT
from experiments.results.wording import format_parameter_count
from experiments.suites.cards import card_named, card_notes, software_bf16_notes
from experiments.system.tables import Column, Line, Table
from provision.words import number_with_noun

END_DESCRIPTIONS = {
    "stopped": "stopped after",
    "ended": "ended by itself after",
    "time limit": "stopped at its time limit after",
}
MAX_SHOWN_ROWS = 10
SMALLEST_SHOWN_GIB = 0.005
NO_FILE_PREFIX = "<"
"""First character of the file names that Python gives to code without a file, such as <frozen runpy>."""


def script_predictions_as_data(predictions: Sequence[ScriptPrediction], samples: int | None = None) -> dict[str, Any]:
    """Return the predictions as one object, with the smallest card that fits.

    samples: the number of samples in an optimizer step, over all GPUs; None if it is unknown.
    """
    return {
        "smallest_card": smallest_card(predictions),
        "predictions": [
            {
                **one.model_dump(mode="json"),
                "cards": [
                    {
                        **card.model_dump(mode="json"),
                        "margin_gib": card.margin_gib,
                        "outcome": card.outcome,
                        **speed_as_data(card, samples),
                    }
                    for card in one.cards
                ],
            }
            for one in predictions
        ],
    }


def script_predictions_view(
    predictions: Sequence[ScriptPrediction], precision: str = "", samples: int | None = None
) -> Group:
    """Return the view for the terminal: the smallest card, the traced training, each card, and the parts of the peak.

    The training and the parts are those on the smallest card that fits. If no card fits, they are those of the
    prediction with the most reserved memory. precision: the precision of the training; "" if it is unknown. samples:
    the number of samples in an optimizer step, over all GPUs; None if it is unknown.
    """
    names = list(dict.fromkeys(card.card for one in predictions for card in one.cards))
    smallest, parts = smallest_card(predictions), list[Any]()
    if len(names) > 1:
        parts.append(Text(f"smallest card that fits: {smallest}" if smallest else "fits none of these cards", "bold"))
    shown = _prediction_to_show(predictions, smallest)
    parts += [Text(line) for line in _summary_lines(shown, _card_to_show(shown, smallest).card)]
    parts += [Text(line)] if (line := describe_time(shown, _card_to_show(shown, smallest), samples)) else []
    parts += [_cards_table(predictions, samples), _modules_table(shown.modules)]
    lines = [one for one in shown.lines if not one.line.startswith(NO_FILE_PREFIX)]
    if any(one.line for one in lines):
        parts.append(_lines_table(lines))
    notes = dict.fromkeys(note for one in predictions for note in one.notes)
    notes |= dict.fromkeys(
        software_bf16_notes(name for name in names if card_named(name).computes_in_software(precision))
    )
    notes |= dict.fromkeys(card_notes(names)) | dict.fromkeys(time_notes(predictions))
    return Group(*parts, *(Line(f"note: {note}", "yellow") for note in notes))


def _prediction_to_show(predictions: Sequence[ScriptPrediction], smallest: str | None) -> ScriptPrediction:
    on_smallest_card = [one for one in predictions if any(card.card == smallest for card in one.cards)]
    return max(on_smallest_card or predictions, key=lambda one: one.reserved_gib)


def _card_to_show(prediction: ScriptPrediction, smallest: str | None) -> CardPrediction:
    return next((card for card in prediction.cards if card.card == smallest), prediction.cards[0])


def _summary_lines(prediction: ScriptPrediction, card: str) -> list[str]:
    model = (
        f"{prediction.model}, {format_parameter_count(prediction.parameters)} parameters"
        if prediction.model
        else "no model was found"
    )
    if prediction.trainable_parameters != prediction.parameters:
        model += f" ({format_parameter_count(prediction.trainable_parameters)} trained)"
    optimizers = ", ".join(prediction.optimizers) or "no optimizer took a step"
    rank = f"rank {prediction.rank} of {prediction.ranks}: " if prediction.ranks > 1 else ""
    rank += f"GPU {prediction.gpu} of {prediction.gpus}: " if prediction.gpus > 1 else ""
    shares = ", ".join(
        f"{part.name} {getattr(prediction.at_peak, part.field):.2f}"
        for part in PARTS_OF_SCRIPT
        if getattr(prediction.at_peak, part.field) >= 0.005
    )
    steps = number_with_noun(prediction.steps, "optimizer step")
    point = f"{prediction.peak_phase}, step {prediction.peak_step}"
    return [
        f"{rank}{model}; {optimizers}",
        f"{END_DESCRIPTIONS[prediction.ended]} {steps}; the trace took {prediction.elapsed_s:.0f} s",
        f"peak {prediction.peak_gib:.2f} GiB on {card} in {point}: {shares}",
        f"reserved {prediction.reserved_gib:.2f} GiB; tensors in host memory {prediction.host_gib:.2f} GiB",
    ]


def _cards_table(predictions: Sequence[ScriptPrediction], samples: int | None) -> Table:
    has_several_ranks = len({prediction.rank for prediction in predictions}) > 1
    title = "GiB on one GPU, smallest card first"
    table = outcomes_table("card", "rank", "GPU", STEP_COLUMN, SAMPLES_COLUMN, title=title, note="out of memory in")
    pairs = [(prediction, card) for prediction in predictions for card in prediction.cards]
    for prediction, card in sorted(pairs, key=lambda pair: (pair[1].usable_gib, pair[0].rank, pair[0].gpu)):
        failed = f"{card.failure.phase}, step {card.failure.step}" if card.failure else ""
        cells = outcome_cells(
            card.outcome,
            failed,
            peak=prediction.peak_gib,
            needed=card.needed_gib,
            usable=card.usable_gib,
            margin=card.margin_gib,
        )
        places = str(prediction.rank) if has_several_ranks else "", str(prediction.gpu) if prediction.gpus > 1 else ""
        table.add(card.card, *places, step_cell(card), samples_cell(card, samples), *cells)
    return table


def _modules_table(modules: Sequence[ModuleMemory]) -> Table:
    table = Table(
        Column("GiB", number=True),
        "what",
        "allocated in",
        Column("module", prose=True),
        title="largest at the peak",
    )
    for one in modules[:MAX_SHOWN_ROWS]:
        table.add(f"{one.size_gib:.2f}", one.category, one.phase, one.module or "outside of modules")
    return table


def _lines_table(lines: Sequence[LineMemory]) -> Table:
    table = Table(Column("GiB", number=True), "what", Column("line"), title="allocated by line of the script")
    for one in lines[:MAX_SHOWN_ROWS]:
        if one.size_gib >= SMALLEST_SHOWN_GIB:
            table.add(f"{one.size_gib:.2f}", one.category, one.line or "elsewhere")
    return table
