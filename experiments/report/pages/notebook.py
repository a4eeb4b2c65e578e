"""Write notebook.html: an executed notebook as a page without scripts.

The outputs of cells are untrusted. Text, and HTML in Markdown, is escaped. Pictures become <img> elements. Outputs in
HTML and JavaScript are left out.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from experiments.report.content import NOTEBOOK_PAGE
from experiments.report.pages.environment import render_template
from experiments.system.files import write_atomically
from provision.files import read_text

PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
DETAILS = re.compile(
    r"<p>&lt;details&gt;&lt;summary&gt;(?P<summary>[^\n]*?)&lt;/summary&gt;</p>(?P<body>.*?)<p>&lt;/details&gt;</p>",
    re.DOTALL,
)
"""The escaped HTML of a collapsible section. The labs' Markdown uses no other HTML."""
TABLE_REGION = '<div class="scroll" tabindex="0" role="group" aria-label="Table">'


class CellPart(NamedTuple):
    """The source of a cell, or one output.

    kind: 'code', 'text', 'error', 'markdown' (then content is safe HTML) or 'picture' (then content is a data URL).
    """

    kind: str
    content: str


def write_notebook_page(notebook: Path) -> None:
    """Write notebook.html next to ``notebook``; if it is not a notebook, the page says so."""
    try:
        cells = json.loads(read_text(notebook, errors="replace"))["cells"]
        parts = [part for cell in cells for part in _parts_of_cell(cell)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        parts = [CellPart("error", f"{notebook.name} cannot be read as a notebook.")]
    title = f"{notebook.parent.name}: executed notebook"
    write_atomically(notebook.with_name(NOTEBOOK_PAGE), render_template("notebook.html", title=title, parts=parts))


def _parts_of_cell(cell: dict[str, Any]) -> Iterator[CellPart]:
    source = _joined_text(cell["source"])
    if cell["cell_type"] == "markdown":
        yield CellPart("markdown", _render_markdown(source))
    elif source.strip():
        yield CellPart("code", source)
    for output in cell.get("outputs", ()):
        yield from _parts_of_output(output)


def _parts_of_output(output: dict[str, Any]) -> Iterator[CellPart]:
    kind = output["output_type"]
    if kind == "stream":
        yield CellPart("text", _plain_text(output["text"]))
    elif kind == "error":
        yield CellPart("error", _plain_text("\n".join(output["traceback"])))
    else:
        yield from _safe_representation(output["data"])


def _safe_representation(data: dict[str, Any]) -> Iterator[CellPart]:
    """Yield the first safe representation that the output has: a picture, Markdown or text; nothing without one."""
    for kind in PICTURES:
        if kind in data:
            yield CellPart("picture", f"data:{kind};base64,{_base64(_joined_text(data[kind]), kind)}")
            return
    if "text/markdown" in data:
        yield CellPart("markdown", _render_markdown(_joined_text(data["text/markdown"])))
    elif "text/plain" in data:
        yield CellPart("text", _plain_text(data["text/plain"]))


def _render_markdown(text: str) -> str:
    """Return Markdown as HTML. Wide tables and code can be scrolled sideways, also with the keyboard."""
    html = DETAILS.sub(r"<details><summary>\g<summary></summary>\g<body></details>", MARKDOWN.render(text))
    html = html.replace("<table>", f"{TABLE_REGION}<table>").replace("</table>", "</table></div>")
    return html.replace("<pre>", '<pre tabindex="0">')


def _base64(content: str, kind: str) -> str:
    if kind == "image/svg+xml":
        return base64.b64encode(content.encode()).decode()
    try:
        return base64.b64encode(base64.b64decode(content)).decode()
    except binascii.Error:
        return ""


def _plain_text(text: Any) -> str:
    return TERMINAL_CODES.sub("", _joined_text(text))


def _joined_text(text: Any) -> str:
    """Return the text of a multi-line string of a notebook, which is stored as a string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)
