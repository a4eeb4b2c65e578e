"""Create the terminal pictures of the documentation from real commands, as SVG in docs/pictures/.

    python docs/pictures.py [NAME...]

Run it in the project's environment when the output of a command changes. Without names, it creates all pictures. The
name `report` draws experiments/evidence/report.png, the page of a stored run, for which it needs Chromium.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "pictures"
TERMINAL_WIDTHS = {"run": 100, "predict": 120}
COMMANDS = {
    "run": "run single_gpu_blip2 --row baseline --row reduced-batch --row xxl-sgd --size tiny",
    "predict": "predict single_gpu_blip2/xxl-sgd --card a100_80gb",
}
REDRAWN_COMMANDS = ("run",)
"""Commands that redraw lines if they print to a terminal. They are run with a pipe, and STATUS_COLORS adds colors."""
STATUS_COLORS = {r"^pass\b": "green", r"^fail\b": "red", r"^error\b": "red", r"^not evaluated\b": "dim"}
STORED_RUN = ROOT / "experiments" / "evidence" / "single_gpu_blip2-a100_80gb-full-verdict"
REPORT_WIDTH = 1000
"""Width of the browser's window, pixels."""
REPORT_SCALE = 0.825
"""Factor by which the picture of the report is reduced."""
MEMORY_SECTION_CSS = (
    "header, section:not(#memory) { display: none } #memory { margin-top: 0 } body, main { padding-top: 0 }"
)
FONT_FACE = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def draw_command(name: str) -> None:
    """Run the command with this name in a temporary folder, and draw its output as SVG."""
    command, width = COMMANDS[name], TERMINAL_WIDTHS[name]
    color_variable = {} if name in REDRAWN_COMMANDS else {"FORCE_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        completed = subprocess.run(
            [sys.executable, "-m", "experiments", *command.split()],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width), **color_variable},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115
    shown_command = command.removesuffix(" --size tiny")
    console.print(Text(f"$ testbed {shown_command}", "bold"))
    console.print(_with_status_colors(completed.stdout.rstrip()))
    svg = FONT_FACE.sub("", console.export_svg(title="testbed", unique_id=name))
    (FOLDER / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))


def _with_status_colors(output: str) -> Text:
    text = Text.from_ansi(output)
    for pattern, style in STATUS_COLORS.items():
        text.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    return text


def draw_report() -> None:
    """Draw the top of a stored run's report, and the memory chart below it, as PNG with a headless Chromium."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / STORED_RUN.name
        shutil.copytree(STORED_RUN, run)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "experiments", "report", str(run)], env=environment, check=True)
        page = (run / "report.html").read_text()
        memory_page = page.replace("</head>", f"<style>{MEMORY_SECTION_CSS}</style></head>")
        parts = [_screenshot(folder, text, height) for text, height in ((page, 755), (memory_page, 1040))]
    picture = Image.new("RGB", (REPORT_WIDTH, sum(part.height for part in parts)))
    picture.paste(parts[0], (0, 0))
    picture.paste(parts[1], (0, parts[0].height))
    picture = picture.resize((round(picture.width * REPORT_SCALE), round(picture.height * REPORT_SCALE)), Image.LANCZOS)
    picture.quantize(128).save(ROOT / "experiments" / "evidence" / "report.png", optimize=True)


def _screenshot(folder: Path, page: str, height: int) -> Image.Image:
    html, png = folder / "page.html", folder / "page.png"
    html.write_text(page)
    size = f"--window-size={REPORT_WIDTH},{height}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000", size]
    subprocess.run(["chromium", *flags, f"--screenshot={png}", html.as_uri()], capture_output=True, check=True)
    return Image.open(io.BytesIO(png.read_bytes()))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or [*COMMANDS, "report"]:
        draw_report() if chosen == "report" else draw_command(chosen)
