"""Stacked horizontal bars with marks and a limit."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from experiments.charts.chart import Chart, axis, number, percent, rendered, series_class

Tone = Literal["quiet", "bad", "warn"]

BAR_PX, TOP_PX, AXIS_PX = 44, 24, 40
ROOM = 1.03
TICKS = 5


class Mark(NamedTuple):
    """A value shown on a bar in addition to its parts."""

    name: str
    value: float
    symbol: Literal["line", "diamond"] = "line"


class Bar(NamedTuple):
    """One bar: its label, the parts in their order, and a note beside the label."""

    label: str
    parts: Mapping[str, float]
    marks: Sequence[Mark] = ()
    value: str = ""
    note: str = ""
    tone: Tone = "quiet"


class Limit(NamedTuple):
    """A dashed line across all bars."""

    value: float
    label: str


def bar_chart(bars: Sequence[Bar], unit: str, alt: str, limit: Limit | None = None) -> Chart:
    """Draw ``bars`` (at least one), the first on top; parts of one name have one color."""
    values = [value for bar in bars for value in (sum(bar.parts.values()), *(mark.value for mark in bar.marks))]
    highest = max([*values, limit.value if limit else 0.0, 1e-6]) * ROOM
    top = TOP_PX if limit else 0
    bottom = top + len(bars) * BAR_PX
    content = rendered(
        "bars.svg",
        bars=[_placed(bar, top + place * BAR_PX, highest, unit) for place, bar in enumerate(bars)],
        ticks=axis(highest, TICKS),
        limit=limit and {"x": percent(limit.value, highest), "label": limit.label, "end": limit.value > highest / 2},
        top=top,
        bottom=bottom,
        unit=unit,
    )
    parts = {name: series_class(name) for bar in bars for name in bar.parts}
    marks = {mark.name: f"mark-{mark.symbol}" for bar in bars for mark in bar.marks}
    return Chart(alt=alt, content=content, height=bottom + AXIS_PX, legend=parts | marks)


def _placed(bar: Bar, y: int, highest: float, unit: str) -> dict[str, object]:
    at, parts = 0.0, []
    for name, size in bar.parts.items():
        tip = f"{name} {number(size)} {unit}"
        if size > 0:
            box = {"x": percent(at, highest), "width": percent(size, highest)}
            parts.append({**box, "tip": tip, "class": series_class(name)})
        at += size
    marks = [
        {"x": percent(mark.value, highest), "tip": f"{mark.name} {number(mark.value)} {unit}", "is": mark}
        for mark in bar.marks
    ]
    return {"bar": bar, "y": y, "parts": parts, "marks": marks}
