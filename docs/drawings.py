"""Draw the pictures of the README and of the concept pages as SVG into docs/drawings/.

python docs/drawings.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "drawings"
FONT = "font-family='Helvetica, Arial, sans-serif'"
COLORS = {
    "teal": ("#e0f2f1", "#00796b"),
    "blue": ("#e3f2fd", "#1565c0"),
    "amber": ("#fff8e1", "#b26a00"),
    "gray": ("#f5f5f5", "#616161"),
}
LINE_HEIGHT = 17
TITLE_STYLE = "font-size='14' font-weight='bold'"
BODY_STYLE = "font-size='12' fill='#37474f'"
LABEL_STYLE = "font-size='11.5' fill='#455a64'"


@dataclass(frozen=True)
class Box:
    """A rounded box: upper left corner and size in pixels, title, lines below the title, key of COLORS."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    color: str = "teal"

    def svg(self) -> str:
        fill, stroke = COLORS[self.color]
        top = self.y + (self.height - LINE_HEIGHT * len(self.lines)) / 2 + 5
        middle = self.x + self.width / 2
        texts = [_text(middle, top, self.title, f"{TITLE_STYLE} fill='{stroke}'")]
        texts += [_text(middle, top + LINE_HEIGHT * (at + 1), line, BODY_STYLE) for at, line in enumerate(self.lines)]
        frame = (
            f"<rect x='{self.x}' y='{self.y}' width='{self.width}' height='{self.height}' rx='8' "
            f"fill='{fill}' stroke='{stroke}'/>"
        )
        return frame + "".join(texts)


@dataclass(frozen=True)
class Arrow:
    """An arrow through points, with a label next to the middle of its first segment; dashed or solid."""

    points: Sequence[tuple[int, int]]
    label: str = ""
    dashed: bool = False

    def svg(self) -> str:
        path = " ".join(f"{x},{y}" for x, y in self.points)
        dash = " stroke-dasharray='5 4'" if self.dashed else ""
        line = (
            f"<polyline points='{path}' fill='none' stroke='#455a64' stroke-width='1.6'{dash} marker-end='url(#tip)'/>"
        )
        if not self.label:
            return line
        (x1, y1), (x2, y2) = self.points[0], self.points[1]
        if y1 == y2:
            return line + _text((x1 + x2) / 2, y1 - 7, self.label, LABEL_STYLE)
        return line + _text((x1 + x2) / 2 + 7, (y1 + y2) / 2 + 4, self.label, LABEL_STYLE, anchor="start")


def _text(x: float, y: float, text: str, style: str, anchor: str = "middle") -> str:
    return f"<text x='{x:g}' y='{y:g}' {FONT} {style} text-anchor='{anchor}'>{escape(text)}</text>"


def drawing(width: int, height: int, title: str, parts: Sequence[Box | Arrow]) -> str:
    """Return an SVG of this size in pixels, with ``title`` for screen readers."""
    arrow_head = (
        "<defs><marker id='tip' markerWidth='9' markerHeight='8' refX='8' refY='4' orient='auto'>"
        "<path d='M0,0 L9,4 L0,8 z' fill='#455a64'/></marker></defs>"
    )
    body = "\n".join(part.svg() for part in parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"role='img'>\n<title>{escape(title)}</title>\n{arrow_head}\n"
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>\n{body}\n</svg>\n"
    )


def pipeline() -> str:
    """Draw the steps from the YAML files of labs to a report."""
    y, height = 20, 84
    titles = [
        ("labs in YAML", ("rows, expected", "outcomes, claims"), "amber"),
        ("predict", ("memory at full size,", "no GPU needed"), "blue"),
        ("run", ("laptop, GPU machine,", "Chameleon, Slurm"), "teal"),
        ("evaluate", ("pass, fail,", "not evaluated, error"), "teal"),
        ("report", ("one HTML page,", "JSON, JUnit"), "teal"),
    ]
    boxes = [Box(20 + 180 * at, y, 150, height, *box) for at, box in enumerate(titles)]
    arrows = [Arrow([(box.x + 150, y + 42), (box.x + 180, y + 42)]) for box in boxes[:-1]]
    title = "From the YAML files of labs to a report: predict, run, evaluate, report"
    return drawing(910, 124, title, [*boxes, *arrows])


def architecture() -> str:
    """Draw the packages and the data flow between them."""
    parts: list[Box | Arrow] = [
        Box(20, 20, 200, 64, "cli", ("one module per command",), "gray"),
        Box(270, 20, 220, 64, "reproduce, pipeline", ("one command, start to end",), "gray"),
        Box(540, 20, 200, 64, "suites", ("labs, cards, models as data",), "amber"),
        Box(20, 150, 200, 100, "provision", ("free time slots,", "leases, SSH,", "node setup"), "blue"),
        Box(270, 150, 220, 100, "runners", ("rows on this machine,", "or as Slurm jobs"), "teal"),
        Box(540, 150, 200, 100, "prediction", ("training code", "on a phantom device"), "blue"),
        Box(20, 316, 200, 64, "inputs", ("weights, texts, archives",), "gray"),
        Box(270, 316, 220, 64, "training", ("worker, ranks, engines,", "measurement"), "teal"),
        Box(540, 316, 200, 64, "results", ("schema, statements, status",), "teal"),
        Box(540, 430, 200, 64, "report, notebooks", ("HTML, JSON, JUnit",), "teal"),
        Arrow([(220, 52), (270, 52)]),
        Arrow([(540, 52), (490, 52)], "rows"),
        Arrow([(380, 84), (380, 150)], "rows to run"),
        Arrow([(490, 68), (515, 68), (515, 180), (540, 180)]),
        Arrow([(220, 200), (270, 200)], "nodes"),
        Arrow([(380, 250), (380, 316)], "one row each"),
        Arrow([(220, 348), (270, 348)], "data"),
        Arrow([(490, 348), (540, 348)], "result"),
        Arrow([(640, 250), (640, 316)], "predictions"),
        Arrow([(640, 380), (640, 430)], "evaluation"),
    ]
    return drawing(760, 514, "Packages of the project, and the data flow between them", parts)


def statements() -> str:
    """Draw how a statement and a result become a status."""
    parts: list[Box | Arrow] = [
        Box(20, 20, 190, 70, "the lab states", ("fits, out of memory,", "14 GB, faster than"), "amber"),
        Box(20, 130, 190, 70, "result.json", ("measured values",), "teal"),
        Box(290, 75, 180, 70, "can it be evaluated?", ("device, size, data",), "gray"),
        Box(560, 20, 190, 48, "pass", (), "teal"),
        Box(560, 82, 190, 48, "fail", (), "amber"),
        Box(560, 144, 190, 62, "not evaluated", ("with the reason",), "gray"),
        Box(290, 220, 180, 62, "error", ("the row failed",), "amber"),
        Arrow([(210, 55), (250, 55), (250, 98), (290, 98)]),
        Arrow([(210, 165), (250, 165), (250, 124), (290, 124)]),
        Arrow([(470, 95), (515, 95), (515, 44), (560, 44)]),
        Arrow([(470, 110), (560, 110)]),
        Arrow([(470, 130), (515, 130), (515, 175), (560, 175)]),
        Arrow([(115, 200), (115, 251), (290, 251)]),
    ]
    return drawing(770, 300, "How a statement and a result become a status", parts)


def prediction() -> str:
    """Draw how a prediction is made."""
    parts: list[Box | Arrow] = [
        Box(20, 20, 180, 84, "a row, or --model", ("settings, model,", "card"), "amber"),
        Box(260, 20, 200, 84, "the training code", ("Lightning, transformers,", "peft, DeepSpeed, ..."), "teal"),
        Box(520, 20, 200, 84, "phantom device", ("a CUDA device without", "hardware: shapes only"), "blue"),
        Box(520, 160, 200, 84, "log of allocations", ("each block, its phase", "and its kind of tensor"), "gray"),
        Box(260, 160, 200, 84, "allocator replay", ("with the card's limit,", "like PyTorch's allocator"), "blue"),
        Box(20, 160, 180, 84, "prediction", ("fits, borderline or oom;", "peak and its parts"), "teal"),
        Arrow([(200, 62), (260, 62)]),
        Arrow([(460, 62), (520, 62)]),
        Arrow([(620, 104), (620, 160)]),
        Arrow([(520, 202), (460, 202)]),
        Arrow([(260, 202), (200, 202)]),
    ]
    return drawing(740, 264, "How a prediction is made: training code on a phantom device, replayed on a card", parts)


def leasing() -> str:
    """Draw the steps of a lease, and its journal."""
    parts: list[Box | Arrow] = [
        Box(20, 30, 130, 64, "request", ("node, hours",), "amber"),
        Box(190, 30, 130, 64, "free slot", ("earliest fit",), "blue"),
        Box(360, 30, 130, 64, "lease", ("reserved",), "teal"),
        Box(530, 30, 130, 64, "nodes", ("booted, reachable",), "teal"),
        Box(700, 30, 130, 64, "release", ("no resources left",), "teal"),
        Box(190, 170, 470, 70, "journal", ("intent before each operation, result after it: ledger.jsonl",), "gray"),
        Box(700, 170, 130, 70, "orphans", ("tagged, but in no", "active lease"), "amber"),
        Arrow([(150, 62), (190, 62)]),
        Arrow([(320, 62), (360, 62)]),
        Arrow([(490, 62), (530, 62)]),
        Arrow([(660, 62), (700, 62)]),
        Arrow([(400, 94), (400, 170)], "intent"),
        Arrow([(460, 170), (460, 94)], "done"),
        Arrow([(595, 94), (595, 170)]),
        Arrow([(740, 94), (740, 132), (640, 132), (640, 170)]),
        Arrow([(700, 205), (660, 205)], dashed=True),
    ]
    return drawing(850, 260, "From a request to a released lease, with the journal under every step", parts)


def main() -> None:
    """Write all drawings."""
    FOLDER.mkdir(exist_ok=True)
    for draw in (pipeline, architecture, statements, prediction, leasing):
        (FOLDER / f"{draw.__name__}.svg").write_text(draw())


if __name__ == "__main__":
    main()
