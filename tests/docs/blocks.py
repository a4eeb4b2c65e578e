"""The bash blocks of README and documentation, and the comment above each."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.generate import COPIED_PAGES, GENERATED_FOLDERS

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<note>[^\n]*?) -->\n+ *)?```bash\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = ("needs: ", "slow: ", "run by CI", "run by make test")


@dataclass(frozen=True)
class Block:
    """A block of commands. note: the comment above the block; for a block that cannot run, it states the reason."""

    place: str
    code: str
    note: str

    @property
    def runs(self) -> bool:
        return not self.note or self.note.startswith("exit: ")

    @property
    def exit_code(self) -> int:
        return int(self.note.removeprefix("exit: ")) if self.note.startswith("exit: ") else 0


def pages() -> list[Path]:
    """Return the pages that people wrote: README, CONTRIBUTING and documentation."""
    generated = tuple(f"reference/{folder}/" for folder in GENERATED_FOLDERS)
    written = [
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not page.relative_to(ROOT / "docs").as_posix().startswith(generated)
        and page.name not in (*COPIED_PAGES.values(), "roles.md")
    ]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *written]


def blocks() -> Iterator[Block]:
    """Yield the blocks of all pages."""
    for page in pages():
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            code = textwrap.dedent(found["code"])
            yield Block(f"{page.relative_to(ROOT)}:{line}", code, (found["note"] or "").strip())
