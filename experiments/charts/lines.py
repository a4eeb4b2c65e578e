"""Lines over time, in panels one above the other."""

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

from experiments.charts.chart import Chart, axis, number, percent, rendered, ticks

PANEL_PX, TITLE_PX, AXIS_PX, LEFT_PX = 76, 30, 40, 46
SCALE = 1000
COLORS = ("line-1", "line-2", "line-3", "line-4")
BANDS = ("band-1", "band-2", "band-3", "band-4", "band-5")
X_TICKS, Y_TICKS = 5, 2


class Line(NamedTuple):
    """One line; None where a value is missing. An empty name: the panel's title says what it is."""

    name: str
    values: Sequence[float | None]


class Panel(NamedTuple):
    """Lines that share a vertical axis from 0."""

    title: str
    unit: str
    lines: Sequence[Line]


class Band(NamedTuple):
    """A time span with a colored background, from ``begin`` to ``end`` on the horizontal axis."""

    name: str
    begin: float
    end: float


def line_chart(
    panels: Sequence[Panel],
    x: Sequence[float],
    x_label: str,
    alt: str,
    bands: Sequence[Band] = (),
    height: int = PANEL_PX,
) -> Chart:
    """Draw each panel, ``height`` px high, with ticks of ``x`` if it has a label.

    ``x`` ascends from 0 or more, and has as many values as each line.
    """
    last = max(x[-1], 1e-9)
    names = dict(zip(dict.fromkeys(band.name for band in bands), cycle(BANDS), strict=False))
    placed = [
        _placed(panel, x, last, number_of * (height + TITLE_PX) + TITLE_PX, height)
        for number_of, panel in enumerate(panels)
    ]
    bottom = len(panels) * (height + TITLE_PX)
    content = rendered(
        "lines.svg",
        panels=placed,
        bands=[(percent(b.begin, last), percent(b.end - b.begin, last), names[b.name]) for b in bands],
        ticks=axis(last, X_TICKS) if x_label else [],
        label=x_label,
        last=last,
        height=height,
        bottom=bottom,
        scale=SCALE,
    )
    return Chart(alt=alt, content=content, height=bottom + (AXIS_PX if x_label else 0), legend=names, left=LEFT_PX)


def _placed(panel: Panel, x: Sequence[float], last: float, y: int, height: int) -> dict[str, object]:
    known = [value for line in panel.lines for value in line.values if value is not None]
    highest = max([*known, 1e-9]) * 1.05
    if panel.unit == "%":
        highest = max(highest, 100.0)
    return {
        "panel": panel,
        "y": y,
        "highest": highest,
        "ticks": [(y + height * (1 - tick / highest), number(tick)) for tick in ticks(highest, Y_TICKS)],
        "lines": [
            (color, line.name, path(x, line.values, last, highest))
            for color, line in zip(cycle(COLORS), panel.lines, strict=False)
        ],
    }


def path(x: Sequence[float], values: Sequence[float | None], last: float, highest: float) -> str:
    """Return the line in units of 1/SCALE of the panel, without points in the middle of a level part."""
    found, previous = "", None
    points = [(round(SCALE * at / last), value) for at, value in zip(x, values, strict=True)]
    for place, (across, value) in enumerate(points):
        if value is None:
            previous = None
            continue
        down = round(SCALE * (1 - value / highest))
        if previous is None:
            found += f"M{across} {down}"
        elif any(one[1] != value for one in points[place - 1 : place + 2]) or place == len(points) - 1:
            found += f"l{across - previous[0]} {down - previous[1]}"
        else:
            continue
        previous = (across, down)
    return found
