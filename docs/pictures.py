"""Take the terminal pictures of the documentation from real commands, as SVG into docs/pictures/.

    python docs/pictures.py [NAME...]

Run it in the project's environment when the output of a command changes. Without names it takes all of them.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "pictures"
WIDTH = {"run": 100, "predict": 120, "list": 100}
COMMANDS = {
    "run": "run single_gpu_blip2 --row baseline --row reduced-batch --row xxl-sgd --size tiny --no-predict",
    "predict": "predict single_gpu_blip2/xxl-sgd --card a100_80gb",
    "list": "list",
}
LIVE = ("run",)
"""Commands that redraw their lines on a terminal: what they print to a file is drawn instead, in these colors."""
STATUS_COLORS = {r"^ pass\b": "green", r"^ fail\b": "red", r"^ error\b": "red", r"^ not evaluated\b": "dim"}
FONT_FACE = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def take(name: str) -> None:
    """Run the command of that name in a fresh folder, and draw what it printed."""
    command, width = COMMANDS[name], WIDTH[name]
    color = {} if name in LIVE else {"FORCE_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, "-m", "experiments", *command.split()],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width), **color},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115
    typed = command.removesuffix(" --size tiny --no-predict")
    console.print(Text(f"$ testbed {typed}", "bold"))
    console.print(_colored(ran.stdout.rstrip()))
    svg = FONT_FACE.sub("", console.export_svg(title="testbed", unique_id=name))
    (FOLDER / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE))


def _colored(output: str) -> Text:
    text = Text.from_ansi(output)
    for pattern, style in STATUS_COLORS.items():
        text.highlight_regex(re.compile(pattern, re.MULTILINE), style)
    return text


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or COMMANDS:
        take(chosen)
