"""Nested rectangles whose areas are sizes: groups by color, and in each group its tiles."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.charts.chart import WIDTH_PX, Chart, number, percent, rendered, series_class

HEIGHT_PX = 420
LINE_PX = 15
TEXT_PX = 70
"""Width of the smallest tile that has a text."""
WIDE_PX = 120
"""Narrower tiles lose their text on a narrow screen."""


class Tile(NamedTuple):
    """One rectangle: its size (positive) and name, and a note below them. short: the name where it is written."""

    name: str
    short: str
    note: str
    size: float


class Box(NamedTuple):
    """A rectangle in px, at WIDTH_PX."""

    x: float
    y: float
    width: float
    height: float


def treemap(groups: Mapping[str, Sequence[Tile]], unit: str, alt: str) -> Chart:
    """Draw the tiles of each group, largest first, in a rectangle of the group; groups of no size are left out."""
    sizes = {name: sum(tile.size for tile in tiles) for name, tiles in groups.items()}
    names = sorted((name for name, size in sizes.items() if size > 0), key=lambda name: -sizes[name])
    places = squarified([sizes[name] for name in names], Box(0, 0, WIDTH_PX, HEIGHT_PX))
    drawn = []
    for name, place in zip(names, places, strict=True):
        tiles = sorted((tile for tile in groups[name] if tile.size > 0), key=lambda tile: -tile.size)
        boxes = squarified([tile.size for tile in tiles], place)
        drawn += [_drawn(name, tile, box, unit) for tile, box in zip(tiles, boxes, strict=True)]
    content = rendered("treemap.svg", tiles=drawn)
    return Chart(alt=alt, content=content, height=HEIGHT_PX, legend={name: series_class(name) for name in names})


def squarified(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return a box for each of the sizes (descending, positive), which fill ``box`` with boxes close to squares.

    Source: Bruls, Huizing, van Wijk: Squarified Treemaps, 2000.
    """
    found: list[Box] = []
    scale = box.width * box.height / (sum(sizes) or 1)
    areas = [size * scale for size in sizes]
    while areas:
        side = min(box.width, box.height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        placed, box = _row(row, box)
        found += placed
    return found


def _worst(row: Sequence[float], side: float) -> float:
    """Return the largest ratio of the sides of boxes of these areas in one row along ``side``."""
    thickness = sum(row) / side
    return max(max(area / thickness**2, thickness**2 / area) for area in row)


def _row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Return boxes of these areas along the shorter side of ``box``, and what is left of it."""
    thickness, at, placed = sum(areas) / min(box.width, box.height), 0.0, []
    for area in areas:
        length = area / thickness
        if box.width >= box.height:
            placed.append(Box(box.x, box.y + at, thickness, length))
        else:
            placed.append(Box(box.x + at, box.y, length, thickness))
        at += length
    if box.width >= box.height:
        return placed, Box(box.x + thickness, box.y, box.width - thickness, box.height)
    return placed, Box(box.x, box.y + thickness, box.width, box.height - thickness)


def _drawn(group: str, tile: Tile, box: Box, unit: str) -> dict[str, object]:
    size = f"{number(tile.size)} {unit}"
    lines = [size, tile.short, tile.note][: int(box.height / LINE_PX)] if box.width >= TEXT_PX else []
    return {
        "x": percent(box.x, WIDTH_PX),
        "width": percent(box.width, WIDTH_PX),
        "y": round(box.y, 1),
        "height": round(box.height, 1),
        "class": series_class(group),
        "tip": ", ".join(filter(None, (group, tile.name, tile.note, size))),
        "lines": [(LINE_PX * (place + 1) - 1, line) for place, line in enumerate(lines)],
        "narrow": box.width < WIDE_PX,
    }
