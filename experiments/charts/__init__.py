"""Draw charts as SVG for pages and notebooks. The charts need neither JavaScript nor a network.

In a page: include ``STYLE`` once, and optionally ``SCRIPT`` for tooltips; ``chart.html`` is a figure with its legend.
In a notebook: ``display(SVG(chart.standalone_svg()))``.
"""

from experiments.charts.bars import Bar, Limit, Mark, NoteTone, bar_chart
from experiments.charts.chart import SCRIPT, STYLE, Chart
from experiments.charts.lines import Band, Line, Panel, line_chart
from experiments.charts.treemap import Tile, treemap

__all__ = [
    "SCRIPT",
    "STYLE",
    "Band",
    "Bar",
    "Chart",
    "Limit",
    "Line",
    "Mark",
    "NoteTone",
    "Panel",
    "Tile",
    "bar_chart",
    "line_chart",
    "treemap",
]
