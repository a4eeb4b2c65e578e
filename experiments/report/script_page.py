"""A page on the predicted memory of a training script: cards, memory over time, and what the peak is made of."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.errors import InputError
from experiments.prediction.script.record import ScriptPrediction
from experiments.report.page import TEMPLATES
from experiments.results.memory_parts import AT_PEAK

WIDTH, HEIGHT, LEFT, TOP = 960, 320, 48, 20
LABEL_WIDTH = 90
TICKS = 4


def write_page(path: Path, command: Sequence[str], predictions: Sequence[ScriptPrediction]) -> None:
    """Write the page to ``path``: one file that needs no network and no JavaScript. Raises InputError if it cannot."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    worst = max(predictions, key=lambda one: one.reserved_gib)
    answers = sorted(
        ((one, card) for one in predictions for card in one.cards), key=lambda both: (both[1].usable_gib, both[0].rank)
    )
    text = environment.get_template("script.html").render(
        command=shlex.join(command),
        worst=worst,
        answers=answers,
        parts=[(part.name, getattr(worst.at_peak, part.field)) for part in AT_PEAK],
        chart=_chart(worst),
    )
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(f"--page {path}: cannot be written ({error.strerror})") from None


def _chart(one: ScriptPrediction) -> dict[str, Any]:
    """Return the coordinates of the chart of memory over time."""
    bottom, width = HEIGHT - 8, WIDTH - LEFT
    most = max(one.timeline_gib)

    def height(size: float) -> float:
        return round(bottom - size / most * (bottom - TOP), 1)

    step = width / len(one.timeline_gib)
    points = [(round(LEFT + place * step, 1), height(size)) for place, size in enumerate(one.timeline_gib)]
    area = f"M{LEFT} {bottom} " + " ".join(f"L{x} {y} h{step:.2f}" for x, y in points) + f" V{bottom} Z"
    ticks = [{"y": height(most * share / TICKS), "label": f"{most * share / TICKS:.1f}"} for share in range(TICKS + 1)]
    phases, free_from = [], 0.0
    for begun in one.phases:
        x = round(LEFT + begun.at * width, 1)
        fits = x >= free_from
        free_from = x + LABEL_WIDTH if fits else free_from
        phases.append({"x": x, "y": 12, "label": begun.phase if fits else ""})
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "bottom": bottom,
        "area": area,
        "ticks": ticks,
        "phases": phases,
    }
