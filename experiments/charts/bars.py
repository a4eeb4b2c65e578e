"""Draw stacked horizontal bars with marks and a limit."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from experiments.charts.chart import Chart, axis_ticks, css_class_of, format_number, format_percent, render_template

NoteTone = Literal["quiet", "bad", "warn"]

BAR_PX, TOP_PX, AXIS_PX = 44, 24, 40
"""Heights: of a bar with its label, of the space for the limit's label above the bars, and of the axis below them."""
HEADROOM = 1.03
"""Highest value of the axis, divided by the highest value of the chart."""
MAX_TICKS = 5


class Mark(NamedTuple):
    """A value that is marked on a bar in addition to its parts."""

    name: str
    value: float
    symbol: Literal["line", "diamond"] = "line"


class Bar(NamedTuple):
    """One bar: label, sizes of its parts by name, marks, and the value and note to print next to the label.

    tone: color of the note.
    """

    label: str
    parts: Mapping[str, float]
    marks: Sequence[Mark] = ()
    value: str = ""
    note: str = ""
    tone: NoteTone = "quiet"


class Limit(NamedTuple):
    """A dashed line across all bars at ``value``, with a label at its upper end."""

    value: float
    label: str


def bar_chart(bars: Sequence[Bar], unit: str, alt: str, limit: Limit | None = None) -> Chart:
    """Draw ``bars`` (at least one), the first at the top. Parts with the same name have the same color.

    unit: unit of all values, shown at the axis. alt: description of the chart for readers who do not see it.
    """
    values = [value for bar in bars for value in (sum(bar.parts.values()), *(mark.value for mark in bar.marks))]
    highest = max([*values, limit.value if limit else 0.0, 1e-6]) * HEADROOM
    top = TOP_PX if limit else 0
    bottom = top + len(bars) * BAR_PX
    content = render_template(
        "bars.svg",
        bars=[_bar_values(bar, top + index * BAR_PX, highest, unit) for index, bar in enumerate(bars)],
        ticks=axis_ticks(highest, MAX_TICKS),
        limit=limit
        and {"x": format_percent(limit.value, highest), "label": limit.label, "end": limit.value > highest / 2},
        top=top,
        bottom=bottom,
        unit=unit,
    )
    parts = {name: css_class_of(name) for bar in bars for name in bar.parts}
    marks = {mark.name: f"mark-{mark.symbol}" for bar in bars for mark in bar.marks}
    return Chart(alt=alt, content=content, height_px=bottom + AXIS_PX, legend=parts | marks)


def _bar_values(bar: Bar, y: int, highest: float, unit: str) -> dict[str, object]:
    start, parts = 0.0, []
    for name, size in bar.parts.items():
        tip = f"{name} {format_number(size)} {unit}"
        if size > 0:
            box = {"x": format_percent(start, highest), "width": format_percent(size, highest)}
            parts.append({**box, "tip": tip, "class": css_class_of(name)})
        start += size
    marks = [
        {
            "x": format_percent(mark.value, highest),
            "tip": f"{mark.name} {format_number(mark.value)} {unit}",
            "symbol": mark.symbol,
        }
        for mark in bar.marks
    ]
    return {"bar": bar, "y": y, "parts": parts, "marks": marks}
