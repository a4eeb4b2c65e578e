"""A page on the predicted memory of a training script: cards, memory over time, and what the peak is made of."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.charts import Band, Bar, Chart, Line, Panel, Tile, bar_chart, line_chart, treemap
from experiments.prediction.script.record import ScriptPrediction
from experiments.report.pages.environment import rendered, save
from experiments.results.memory_parts import ACTIVATIONS, AT_PEAK

HEIGHT_PX = 360
SMALLEST = 0.002
"""Share of the peak of the smallest block with a tile of its own."""


def write_page(path: Path, command: Sequence[str], predictions: Sequence[ScriptPrediction]) -> None:
    """Write the page to ``path``: one file that needs no network and no JavaScript. Raises InputError if it cannot."""
    worst = max(predictions, key=lambda one: one.reserved_gib)
    answers = sorted(
        ((one, card) for one in predictions for card in one.cards), key=lambda both: (both[1].usable_gib, both[0].rank)
    )
    text = rendered(
        "script.html",
        command=shlex.join(command),
        worst=worst,
        answers=answers,
        parts=[(part.name, getattr(worst.at_peak, part.field)) for part in AT_PEAK],
        timeline=_chart(worst),
        peak=_parts(worst),
        blocks=_blocks(worst),
    )
    save(path, text)


def _chart(one: ScriptPrediction) -> Chart:
    """Return memory over time: a share of the log from 0 to 1, with a background for each phase."""
    sizes = one.timeline_gib
    begins = [*(phase.at for phase in one.phases), 1.0]
    bands = [Band(phase.phase, phase.at, end) for phase, end in zip(one.phases, begins[1:], strict=True)]
    panel = Panel("allocated memory", "GiB", [Line("", (*sizes, sizes[-1]))])
    at = [place / len(sizes) for place in range(len(sizes) + 1)]
    return line_chart([panel], at, "", f"Allocated memory over time, at most {one.peak_gib:.2f} GiB", bands, HEIGHT_PX)


def _parts(one: ScriptPrediction) -> Chart:
    sizes = {part.name: getattr(one.at_peak, part.field) for part in AT_PEAK}
    bar = Bar("peak", sizes, value=f"{one.peak_gib:.2f} GiB", note=f"in {one.peak_phase}, step {one.peak_step}")
    return bar_chart([bar], "GiB", "The parts of the peak; the same numbers are in the table below")


def _end(module: str) -> str:
    """Return the last two parts of a module's name."""
    return ".".join(module.split(".")[-2:])


def _blocks(one: ScriptPrediction) -> Chart:
    """Return the memory of the peak by part, module and line; those below SMALLEST of it are one tile of their part."""
    names = {part.key: part.name for part in AT_PEAK}
    groups: dict[str, list[Tile]] = {part.name: [] for part in AT_PEAK}
    small = dict.fromkeys(groups, 0.0)
    for block in one.blocks:
        name = names.get(block.category, ACTIVATIONS.name)
        if block.size_gib < SMALLEST * one.peak_gib:
            small[name] += block.size_gib
        else:
            module = block.module or "outside of modules"
            groups[name].append(Tile(module, _end(module), block.line, block.size_gib))
    for name, size in small.items():
        groups[name].append(Tile("smaller ones", "smaller ones", "", size))
    return treemap(groups, "GiB", f"What lives at the peak, {one.peak_gib:.2f} GiB, by part, module and line")
