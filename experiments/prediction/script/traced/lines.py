"""The lines of a script's own code, as events of the phantom device's log."""

import re
import sys
import threading
from bisect import bisect_right
from pathlib import Path
from types import CodeType, FrameType

from experiments.prediction.phantom.library import Phantom
from experiments.system.files import CODE

CELL = re.compile(r"<ipython-input-(?P<number>\d+)|ipykernel_")
LIBRARIES = ("site-packages", "dist-packages")
THIS_PROGRAM = CODE / "experiments" / "prediction"


class Marks:
    """Names that hold from an event of the log until the next one; empty at first."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str]] = [(0, "")]

    def begin(self, event: int, name: str) -> None:
        """Let ``name`` hold from the next event on; ``event`` is the number of events so far."""
        if self._begun[-1][0] == event:
            self._begun.pop()
        if not self._begun or self._begun[-1][1] != name:
            self._begun.append((event, name))

    def at(self, event: int) -> str:
        """Return the name that holds at an event."""
        place = bisect_right(self._begun, event, key=lambda begun: begun[0]) - 1
        return self._begun[place][1] if place >= 0 else ""


class Lines:
    """Finds the line of the code in ``folder`` that each allocation of 1 MiB and more comes from.

    What a library allocates counts for the line that called it. The backward pass counts for the line that started it:
    autograd allocates in threads of its own, while the main thread waits there. Smaller allocations count for the line
    of the last larger one.
    """

    def __init__(self, phantom: Phantom, folder: Path) -> None:
        self.marks = Marks()
        self._phantom, self._folder = phantom, folder
        self._known: dict[CodeType, str] = {}

    def follow(self) -> None:
        """Find the lines from now on."""
        self._phantom.before_large(self._allocates)

    def end(self) -> None:
        """Find no more lines."""
        self._phantom.before_large(None)

    def _allocates(self) -> None:
        main = threading.main_thread().ident or 0
        line = self._line(sys._getframe()) or self._line(sys._current_frames()[main])
        self.marks.begin(self._phantom.stats()[4], line)

    def _line(self, frame: FrameType | None) -> str:
        """Return the innermost line of own code below a frame; empty if there is none."""
        while frame:
            if name := self._name(frame.f_code):
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    def _name(self, code: CodeType) -> str:
        """Return the file of own code, relative to the folder, or the cell of a notebook; empty for other code."""
        if code not in self._known:
            self._known[code] = self._named(code.co_filename)
        return self._known[code]

    def _named(self, file: str) -> str:
        if cell := CELL.search(file):
            return f"cell {cell['number'] or ''}".strip()
        path = Path(file).absolute()
        own = path.is_relative_to(self._folder) and not path.is_relative_to(THIS_PROGRAM)
        if not own or any(part in LIBRARIES for part in path.parts):
            return ""
        return str(path.relative_to(self._folder))
