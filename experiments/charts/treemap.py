"""Draw nested rectangles whose areas show sizes: colored groups, each divided into tiles."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.charts.chart import WIDTH_PX, Chart, css_class_of, format_number, format_percent, render_template

HEIGHT_PX = 420
LINE_HEIGHT_PX = 15
MIN_TEXT_PX = 70
"""Minimum width of a tile that shows text."""
MIN_WIDE_PX = 120
"""Minimum width of a tile that shows its text on a narrow screen, too."""


class Tile(NamedTuple):
    """One tile: full name for the tooltip, short name and note to print, and size (positive)."""

    name: str
    short_name: str
    note: str
    size: float


class Box(NamedTuple):
    """A rectangle in px, in a chart that is WIDTH_PX wide."""

    x: float
    y: float
    width: float
    height: float


def treemap(groups: Mapping[str, Sequence[Tile]], unit: str, alt: str) -> Chart:
    """Draw each group as a rectangle with its tiles, largest first. Groups and tiles of size 0 are omitted."""
    sizes = {name: sum(tile.size for tile in tiles) for name, tiles in groups.items()}
    names = sorted((name for name, size in sizes.items() if size > 0), key=lambda name: -sizes[name])
    places = squarify([sizes[name] for name in names], Box(0, 0, WIDTH_PX, HEIGHT_PX))
    drawn = []
    for name, place in zip(names, places, strict=True):
        tiles = sorted((tile for tile in groups[name] if tile.size > 0), key=lambda tile: -tile.size)
        boxes = squarify([tile.size for tile in tiles], place)
        drawn += [_tile_values(name, tile, box, unit) for tile, box in zip(tiles, boxes, strict=True)]
    content = render_template("treemap.svg", tiles=drawn)
    return Chart(alt=alt, content=content, height_px=HEIGHT_PX, legend={name: css_class_of(name) for name in names})


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Divide ``box`` into one almost square box for each of ``sizes`` (descending, positive), and return them.

    Source: Bruls, Huizing, van Wijk: Squarified Treemaps, 2000.
    """
    boxes: list[Box] = []
    scale = box.width * box.height / (sum(sizes) or 1)
    areas = [size * scale for size in sizes]
    while areas:
        side = min(box.width, box.height)
        count = 1
        while count < len(areas) and _worst_ratio(areas[: count + 1], side) <= _worst_ratio(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        placed, box = _place_row(row, box)
        boxes += placed
    return boxes


def _worst_ratio(row: Sequence[float], side: float) -> float:
    """Return the largest aspect ratio of boxes with these areas in one row along a side of length ``side``."""
    thickness = sum(row) / side
    return max(max(area / thickness**2, thickness**2 / area) for area in row)


def _place_row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Return a row of boxes with these areas along the shorter side of ``box``, and the free part of ``box``."""
    thickness, offset, placed = sum(areas) / min(box.width, box.height), 0.0, []
    for area in areas:
        length = area / thickness
        if box.width >= box.height:
            placed.append(Box(box.x, box.y + offset, thickness, length))
        else:
            placed.append(Box(box.x + offset, box.y, length, thickness))
        offset += length
    if box.width >= box.height:
        return placed, Box(box.x + thickness, box.y, box.width - thickness, box.height)
    return placed, Box(box.x, box.y + thickness, box.width, box.height - thickness)


def _tile_values(group: str, tile: Tile, box: Box, unit: str) -> dict[str, object]:
    size = f"{format_number(tile.size)} {unit}"
    lines = [size, tile.short_name, tile.note][: int(box.height / LINE_HEIGHT_PX)] if box.width >= MIN_TEXT_PX else []
    return {
        "x": format_percent(box.x, WIDTH_PX),
        "width": format_percent(box.width, WIDTH_PX),
        "y": round(box.y, 1),
        "height": round(box.height, 1),
        "class": css_class_of(group),
        "tip": ", ".join(filter(None, (group, tile.name, tile.note, size))),
        "lines": [(LINE_HEIGHT_PX * (place + 1) - 1, line) for place, line in enumerate(lines)],
        "narrow": box.width < MIN_WIDE_PX,
    }
