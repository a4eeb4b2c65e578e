"""Find the line of a script that made each allocation in the log of the phantom device."""

import re
import sys
import threading
from bisect import bisect_right
from pathlib import Path
from types import CodeType, FrameType

from experiments.prediction.phantom.library import Phantom
from experiments.system.files import CODE_FOLDER

CELL_FILE = re.compile(r"<ipython-input-(?P<number>\d+)|ipykernel_")
LIBRARY_FOLDERS = ("site-packages", "dist-packages")
PREDICTION_CODE = CODE_FOLDER / "experiments" / "prediction"


class NamedSpans:
    """Names of spans of the log: each name applies from one event until the next name begins.

    The first name is empty.
    """

    def __init__(self) -> None:
        self._starts: list[tuple[int, str]] = [(0, "")]

    def begin(self, event: int, name: str) -> None:
        """Begin a span with the next event; ``event`` is the number of events so far."""
        if self._starts[-1][0] == event:
            self._starts.pop()
        if not self._starts or self._starts[-1][1] != name:
            self._starts.append((event, name))

    def name_at(self, event: int) -> str:
        """Return the name of the span that contains an event."""
        index = bisect_right(self._starts, event, key=lambda start: start[0]) - 1
        return self._starts[index][1] if index >= 0 else ""


class LineTracker:
    """Tracker of the lines of code in ``folder`` that make allocations of 1 MiB or more.

    Allocations of a library count for the line that called the library. Allocations of the backward pass count for the
    line that started the pass: autograd allocates in its own threads while the main thread waits at this line. Smaller
    allocations count for the line of the last allocation of at least 1 MiB.
    """

    def __init__(self, phantom: Phantom, folder: Path) -> None:
        self.spans = NamedSpans()
        self._phantom, self._folder = phantom, folder
        self._file_names: dict[CodeType, str] = {}

    def start(self) -> None:
        """Start tracking lines."""
        self._phantom.on_large_allocation(self._on_allocation)

    def stop(self) -> None:
        """Stop tracking lines."""
        self._phantom.on_large_allocation(None)

    def _on_allocation(self) -> None:
        main = threading.main_thread().ident or 0
        line = self._find_line(sys._getframe()) or self._find_line(sys._current_frames()[main])
        self.spans.begin(self._phantom.stats()[4], line)

    def _find_line(self, frame: FrameType | None) -> str:
        """Return the innermost line of the script's code in the stack of ``frame``; '' if there is none."""
        while frame:
            if name := self._file_name(frame.f_code):
                return f"{name}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    def _file_name(self, code: CodeType) -> str:
        """Return the script's file, relative to the folder, or the notebook cell; '' for code of libraries."""
        if code not in self._file_names:
            self._file_names[code] = self._relative_name(code.co_filename)
        return self._file_names[code]

    def _relative_name(self, file: str) -> str:
        if cell := CELL_FILE.search(file):
            return f"cell {cell['number'] or ''}".strip()
        path = Path(file).absolute()
        is_script = path.is_relative_to(self._folder) and not path.is_relative_to(PREDICTION_CODE)
        if not is_script or any(part in LIBRARY_FOLDERS for part in path.parts):
            return ""
        return str(path.relative_to(self._folder))
