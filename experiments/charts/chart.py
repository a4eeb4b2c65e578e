"""The common parts of all charts: SVG that fills the available width, a legend, and ticks."""

from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from provision.files import printable_value

CHARTS_FOLDER = Path(__file__).parent
SVG_STYLE = Markup((CHARTS_FOLDER / "charts.css").read_text())  # noqa: S704 - a file of this package
"""Style sheet of the content of charts: colors as CSS variables, for light and dark."""
STYLE = SVG_STYLE + Markup((CHARTS_FOLDER / "figure.css").read_text())  # noqa: S704 - a file of this package
"""Style sheet of a page with charts: content, legends and tooltips."""
SCRIPT = Markup((CHARTS_FOLDER / "charts.js").read_text())  # noqa: S704 - a file of this package
"""Optional script: tooltips, values under the pointer, and highlighting from the legend."""
WIDTH_PX = 760
EDGE_SHARE = 0.96
"""If the last tick is beyond this share of the axis, its label is right-aligned, so that it stays inside the chart."""
TEMPLATES = Environment(
    loader=FileSystemLoader(CHARTS_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=printable_value,
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart. Horizontal positions are percentages, so text keeps its size at every width.

    alt: description for readers who do not see the chart. content: SVG elements. label_width_px: width of the space for
    the labels of the vertical axis. legend: for each name in the legend, the CSS class with its color.
    """

    alt: str
    content: Markup
    height_px: int
    legend: dict[str, str]
    label_width_px: int = 0

    @property
    def html(self) -> Markup:
        """Return a figure: the legend, and the chart as inline SVG."""
        return Markup(TEMPLATES.get_template("figure.html").render(chart=self))  # noqa: S704 - the template escapes

    def standalone_svg(self, width: int = WIDTH_PX) -> str:
        """Return an SVG document with its own styles and legend, ``width`` px wide."""
        return TEMPLATES.get_template("standalone.svg").render(chart=self, style=SVG_STYLE, width=width)


def render_template(template: str, **values: Any) -> Markup:
    """Return the SVG content of a chart, rendered from its template."""
    return Markup(TEMPLATES.get_template(template).render(**values))  # noqa: S704 - the template escapes


def format_percent(value: float, total: float) -> str:
    """Return ``value`` as a percentage of ``total`` in the format of SVG: '12.5%'."""
    return f"{100 * value / total:.5g}%"


def tick_values(highest: float, max_count: int) -> list[float]:
    """Return round numbers from 0 to ``highest`` (positive): 0 and at most ``max_count`` further numbers."""
    power = 10.0 ** (floor(log10(highest / max_count)))
    step = next(power * times for times in (1, 2, 5, 10) if highest / (power * times) <= max_count)
    return [index * step for index in range(floor(highest / step + 1e-9) + 1)]


def axis_ticks(highest: float, max_count: int) -> list[dict[str, str]]:
    """Return position (x), label and alignment (anchor) of each tick of a horizontal axis from 0 to ``highest``.

    The labels are aligned so that none extends beyond the chart.
    """
    values = tick_values(highest, max_count)
    anchors = ["start", *(["middle"] * (len(values) - 1))]
    if len(values) > 1 and values[-1] > EDGE_SHARE * highest:
        anchors[-1] = "end"
    return [
        {"x": format_percent(value, highest), "label": format_number(value), "anchor": anchor}
        for value, anchor in zip(values, anchors, strict=True)
    ]


def css_class_of(name: str) -> str:
    """Return the CSS class that colors a part of memory: 'c-optimizer' for 'optimizer in host memory'."""
    return f"c-{name.split()[0]}"


def format_number(value: float) -> str:
    """Format a number: four significant digits, thousands with a comma."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
