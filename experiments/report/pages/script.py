"""Write the page of a training script's prediction: cards, memory over time, parts of the peak, shares of a step."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.charts import Band, Bar, Chart, Line, Panel, Tile, bar_chart, line_chart, treemap
from experiments.prediction.script.record import CardPrediction, ScriptPrediction
from experiments.prediction.script.speed import step_cell, time_notes
from experiments.report.pages.charts import step_bar
from experiments.report.pages.environment import render_template, save_page
from experiments.results.memory_parts import ACTIVATIONS, PARTS_OF_SCRIPT, TEMPORARY

HEIGHT_PX = 360
MIN_TILE_SHARE = 0.002
"""Minimum share of the peak for which an allocated block gets its own tile."""


def write_script_page(path: Path, command: Sequence[str], predictions: Sequence[ScriptPrediction]) -> None:
    """Write the page to ``path``: one file that needs no network and no JavaScript.

    Raises InputError if ``path`` cannot be written.
    """
    worst = max(predictions, key=lambda prediction: prediction.reserved_gib)
    cards = sorted(
        ((prediction, card) for prediction in predictions for card in prediction.cards),
        key=lambda pair: (pair[1].usable_gib, pair[0].rank),
    )
    text = render_template(
        "script.html",
        command=shlex.join(command),
        worst=worst,
        cards=cards,
        parts=[(part.name, getattr(worst.at_peak, part.field)) for part in PARTS_OF_SCRIPT],
        timeline=_timeline_chart(worst),
        step_cell=step_cell,
        step=_step_chart(cards),
        time_notes=tuple(time_notes(predictions)),
        peak=_peak_chart(worst),
        blocks=_block_treemap(worst),
    )
    save_page(path, text)


def _timeline_chart(prediction: ScriptPrediction) -> Chart:
    """Return the chart of allocated memory, shaded by phase. The x axis is the position in the log of allocations."""
    sizes = prediction.timeline_gib
    starts = [*(phase.at for phase in prediction.phases), 1.0]
    bands = [Band(phase.phase, phase.at, end) for phase, end in zip(prediction.phases, starts[1:], strict=True)]
    panel = Panel("allocated memory", "GiB", [Line("", (*sizes, sizes[-1]))])
    positions = [index / len(sizes) for index in range(len(sizes) + 1)]
    return line_chart(
        [panel], positions, "", f"Allocated memory over time, at most {prediction.peak_gib:.2f} GiB", bands, HEIGHT_PX
    )


def _step_chart(cards: Sequence[tuple[ScriptPrediction, CardPrediction]]) -> Chart | None:
    """Return the chart of the time of a step on each card that the training fits; None without a predicted time."""
    bars = [
        step_bar(f"{card.card}, rank {prediction.rank}" if prediction.ranks > 1 else card.card, card.time)
        for prediction, card in cards
        if card.time and card.margin_gib >= 0
    ]
    return bar_chart(bars, "% of the step", "Predicted shares of the time of a step on each card") if bars else None


def _peak_chart(prediction: ScriptPrediction) -> Chart:
    sizes = {part.name: getattr(prediction.at_peak, part.field) for part in PARTS_OF_SCRIPT}
    bar = Bar(
        "peak",
        sizes,
        value=f"{prediction.peak_gib:.2f} GiB",
        note=f"in {prediction.peak_phase}, step {prediction.peak_step}",
    )
    return bar_chart([bar], "GiB", "The parts of the peak; the same numbers are in the table below")


def _short_module_name(module: str) -> str:
    """Return the last two parts of a module's name."""
    return ".".join(module.split(".")[-2:])


def _block_treemap(prediction: ScriptPrediction) -> Chart:
    """Return the memory at the peak as tiles by part, module and line.

    Blocks smaller than MIN_TILE_SHARE of the peak are combined into one tile per part.
    """
    names = {part.key: part.name for part in (*PARTS_OF_SCRIPT, TEMPORARY)}
    groups: dict[str, list[Tile]] = {name: [] for name in names.values()}
    small = dict.fromkeys(groups, 0.0)
    for block in prediction.blocks:
        name = names.get(block.category, ACTIVATIONS.name)
        if block.size_gib < MIN_TILE_SHARE * prediction.peak_gib:
            small[name] += block.size_gib
        else:
            module = block.module or "outside of modules"
            groups[name].append(Tile(module, _short_module_name(module), block.line, block.size_gib))
    for name, size in small.items():
        groups[name].append(Tile("smaller ones", "smaller ones", "", size))
    return treemap(
        groups, "GiB", f"Memory allocated at the peak, {prediction.peak_gib:.2f} GiB, by part, module and line"
    )
