"""Draw lines over time in stacked panels."""

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

from experiments.charts.chart import Chart, axis_ticks, format_number, format_percent, render_template, tick_values

PANEL_PX, TITLE_PX, AXIS_PX, LEFT_PX = 76, 30, 40, 46
"""Heights of a panel, of its title, and of the axis; width of the space for labels on the left of the panels."""
PANEL_UNITS = 1000
"""Width and height of a panel in the units of its lines' paths."""
LINE_CLASSES = ("line-1", "line-2", "line-3", "line-4")
BAND_CLASSES = ("band-1", "band-2", "band-3", "band-4", "band-5")
MAX_X_TICKS, MAX_Y_TICKS = 5, 2
"""Maximum numbers of ticks, not counting the tick at 0."""


class Line(NamedTuple):
    """One line of a panel. None stands for a missing value. The name is empty if the panel's title names the line."""

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
    """Draw the panels below each other, each ``height`` px high, with the bands behind the lines of every panel.

    x: positions of the lines' values: ascending, not negative, as many as each line has values. x_label: label of the
    horizontal axis; if empty, the axis has no ticks either. alt: description for readers who do not see the chart.
    """
    last = max(x[-1], 1e-9)
    names = dict(zip(dict.fromkeys(band.name for band in bands), cycle(BAND_CLASSES), strict=False))
    panel_values = [
        _panel_values(panel, x, last, index * (height + TITLE_PX) + TITLE_PX, height)
        for index, panel in enumerate(panels)
    ]
    bottom = len(panels) * (height + TITLE_PX)
    content = render_template(
        "lines.svg",
        panels=panel_values,
        bands=[(format_percent(b.begin, last), format_percent(b.end - b.begin, last), names[b.name]) for b in bands],
        ticks=axis_ticks(last, MAX_X_TICKS) if x_label else [],
        label=x_label,
        last=last,
        height=height,
        bottom=bottom,
        scale=PANEL_UNITS,
    )
    return Chart(
        alt=alt, content=content, height_px=bottom + (AXIS_PX if x_label else 0), legend=names, label_width_px=LEFT_PX
    )


def _panel_values(panel: Panel, x: Sequence[float], last: float, y: int, height: int) -> dict[str, object]:
    known = [value for line in panel.lines for value in line.values if value is not None]
    highest = max([*known, 1e-9]) * 1.05
    if panel.unit == "%":
        highest = max(highest, 100.0)
    return {
        "panel": panel,
        "y": y,
        "highest": highest,
        "ticks": [
            (y + height * (1 - tick / highest), format_number(tick)) for tick in tick_values(highest, MAX_Y_TICKS)
        ],
        "lines": [
            (color, line.name, line_path(x, line.values, last, highest))
            for color, line in zip(cycle(LINE_CLASSES), panel.lines, strict=False)
        ],
    }


def line_path(x: Sequence[float], values: Sequence[float | None], last: float, highest: float) -> str:
    """Return the SVG path of a line. The panel is PANEL_UNITS units wide and high.

    values: the values at the positions ``x``; the line has a gap where a value is None. last: position at the panel's
    right edge. highest: value at the panel's upper edge. If several values in a row are equal, the path has only the
    first and the last of them.
    """
    path, previous = "", None
    points = [(round(PANEL_UNITS * position / last), value) for position, value in zip(x, values, strict=True)]
    for index, (across, value) in enumerate(points):
        if value is None:
            previous = None
            continue
        down = round(PANEL_UNITS * (1 - value / highest))
        if previous is None:
            path += f"M{across} {down}"
        elif any(one[1] != value for one in points[index - 1 : index + 2]) or index == len(points) - 1:
            path += f"l{across - previous[0]} {down - previous[1]}"
        else:
            continue
        previous = (across, down)
    return path
