"""Charts: the positions of bars and lines, and well-formed SVG."""

import re
import xml.etree.ElementTree as ET

import pytest

from experiments.charts import STYLE, Band, Bar, Limit, Line, Mark, Panel, Tile, bar_chart, line_chart, treemap
from experiments.charts.chart import css_class_of, tick_values
from experiments.charts.lines import line_path
from experiments.charts.treemap import Box, squarify
from experiments.results.memory_parts import PART_COLUMNS, PARTS_OF_SCRIPT

EVIL = "</svg><script>alert(1)</script> & <b>"
BARS = [
    Bar("a", {"parameters": 10.0, "gradients": 30.0}, [Mark("reserved", 45.0)], "40 GiB", "fits"),
    Bar(EVIL, {"parameters": 50.0}, [Mark("measured", 48.0, "diamond")], tone="bad"),
]


def attributes(content: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<rect[^>]* {name}="([\d.]+)%"', content)]


def test_the_parts_of_a_bar_are_adjacent_and_drawn_to_scale():
    chart = bar_chart(BARS, "GiB", "memory")
    starts, widths = attributes(chart.content, "x"), attributes(chart.content, "width")
    assert widths[1] == pytest.approx(3 * widths[0], rel=1e-3)
    assert starts == pytest.approx([0.0, widths[0], 0.0], abs=0.01)
    assert widths[2] == pytest.approx(100 / 1.03, rel=1e-3)
    assert list(chart.legend) == ["parameters", "gradients", "reserved", "measured"]


def test_a_limit_that_exceeds_all_bars_is_inside_the_chart():
    content = bar_chart(BARS, "GiB", "memory", Limit(100.0, "card: 100 GiB")).content
    assert re.findall(r'class="limit" x1="([\d.]+)%"', content) == [f"{100 / 1.03:.5g}"]
    assert "card: 100 GiB" in content


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (81, [0, 20, 40, 60, 80]),
        (1.03e-6, [0, 5e-7, 1e-6]),
        (100, [0, 20, 40, 60, 80, 100]),
        (7, [0, 2, 4, 6]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(highest, expected):
    assert tick_values(highest, 5) == pytest.approx(expected, abs=1e-12)


def test_a_curve_has_no_points_for_repeated_and_missing_values():
    assert line_path([0, 1, 2, 3, 4], [0, 0, 0, 10, 10], 4, 10) == "M0 1000l500 0l250 -1000l250 0"
    assert line_path([0, 1, 2], [5, None, 10], 2, 10) == "M0 500M1000 0"
    assert line_path([0], [5], 1, 10) == "M0 500"


def test_every_chart_is_a_complete_document_with_escaped_text():
    panel = Panel(EVIL, "%", [Line("GPU", [0.0, None, 90.0])])
    lines = line_chart([panel, panel], [0, 1, 2], "seconds", EVIL, [Band(EVIL, 0, 1)])
    tiles = treemap({"parameters": [Tile(EVIL, EVIL, EVIL, 1.0)]}, "GiB", EVIL)
    for chart in (bar_chart(BARS, "GiB", EVIL, Limit(40, EVIL)), lines, tiles):
        root = ET.fromstring(chart.standalone_svg())
        assert root.get("aria-label") == EVIL
        assert "<script" not in chart.standalone_svg() + chart.html
        assert chart.html.count("<svg") == chart.html.count("</svg>")


@pytest.mark.parametrize("values", [[None, None], [0.0, 0.0]])
def test_a_panel_whose_values_are_all_missing_or_zero_is_drawn(values):
    assert "<path" in line_chart([Panel("busy", "", [Line("GPU", values)])], [0, 0], "s", "load").content


def test_areas_in_a_treemap_are_proportional_to_sizes_and_fill_it_without_overlap():
    sizes = [6, 6, 4, 3, 2, 2, 1]
    boxes = squarify(sizes, Box(10, 20, 6, 4))
    assert [box.width * box.height for box in boxes] == pytest.approx(sizes)
    assert max(max(box.width / box.height, box.height / box.width) for box in boxes) < 3
    corners = [(box.x, box.y, box.x + box.width, box.y + box.height) for box in boxes]
    assert (min(c[0] for c in corners), min(c[1] for c in corners)) == (10, 20)
    assert (max(c[2] for c in corners), max(c[3] for c in corners)) == pytest.approx((16, 24))
    for place, (left, top, right, bottom) in enumerate(corners):
        for other in corners[:place]:
            beside = left >= other[2] - 1e-9 or right <= other[0] + 1e-9
            assert beside or top >= other[3] - 1e-9 or bottom <= other[1] + 1e-9


def test_a_treemap_draws_each_group_as_one_rectangle_and_leaves_out_empty_groups():
    groups = {
        "gradients": [],
        "parameters": [Tile("a.b.c", "b.c", "x.py:1", 3.0)],
        "optimizer": [Tile("o", "o", "", 1.0)],
    }
    chart = treemap(groups, "GiB", "memory")
    assert list(chart.legend) == ["parameters", "optimizer"]
    assert re.findall(r'width="([\d.]+)%"', chart.content)[0] == "75"
    assert "<title>parameters, a.b.c, x.py:1, 3 GiB</title>" in chart.content


@pytest.mark.parametrize("part", sorted({*PART_COLUMNS, *PARTS_OF_SCRIPT}), ids=lambda part: part.key)
def test_each_part_of_memory_has_a_color(part):
    assert f".{css_class_of(part.name)} {{ --own: var(--c-" in STYLE
