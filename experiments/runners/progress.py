"""What a person sees while rows run: a living table on a terminal, one line a start and an end elsewhere."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from experiments.results.schema import Progress, Result
from experiments.results.wording import OUTCOMES, clock
from experiments.runners.plan import Planned
from experiments.suites.row_spec import RowSpec

if TYPE_CHECKING:
    from experiments.runners.slurm.download import Arrived

MEGABYTE = 1_000_000
REFRESH_S = 0.25
STYLES = {"fits": "green", "oom": "yellow", "refused": "dim"}


@dataclass(frozen=True)
class State:
    """A row under way: its time so far in seconds, and where it says that it is; ``waits``: for what it still waits."""

    spec: RowSpec
    elapsed_s: float
    progress: Progress | None
    waits: str = ""


class View:
    """One line for each start and end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def alive(self) -> AbstractContextManager[object]:
        """What the runner enters while rows are under way."""
        return nullcontext()

    def keeps(self, row: Planned) -> None:
        self._say(f"{row.row}: kept ({row.why})")

    def starts(self, spec: RowSpec, why: str) -> None:
        self._say(f"{spec.row}: starts ({why})")

    def ends(self, spec: RowSpec, result: Result) -> None:
        peak = result.memory.peak_gib
        figures = [f"peak {peak:.4g} GiB"] if peak is not None else []
        figures += [f"{result.elapsed_s:.0f} s"] if result.elapsed_s else []
        reason = f": {result.reason}" if result.outcome != "fits" else ""
        self._say(
            f"{spec.row}: {', '.join([OUTCOMES[result.outcome], *figures])}{reason}", STYLES.get(result.outcome, "red")
        )

    def says(self, text: str) -> None:
        self._say(text)

    def warns(self, text: str) -> None:
        self._say(text, "red")

    def shows(self, states: Sequence[State], done: int, total: int, left_s: float | None) -> None:
        return None

    def brings(self, spec: RowSpec, arrived: "Arrived") -> None:
        """How far the row's files have come home."""

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


class Screen(View):
    """The same lines, and under them a table of the rows under way."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._table = table([], 0, 0, None)
        self._shown = 0.0

    def alive(self) -> AbstractContextManager[object]:
        return self._live

    def shows(self, states: Sequence[State], done: int, total: int, left_s: float | None) -> None:
        self._table = table(states, done, total, left_s)
        self._live.update(self._table, refresh=True)

    def brings(self, spec: RowSpec, arrived: "Arrived") -> None:
        if time.monotonic() - self._shown > REFRESH_S:
            self._live.update(Group(self._table, download_progress(spec, arrived)), refresh=True)
            self._shown = time.monotonic()


def view_on(console: Console) -> View:
    """The view that suits ``console``."""
    return Screen(console) if console.is_terminal else View(console)


def table(states: Sequence[State], done: int, total: int, left_s: float | None) -> Table:
    """The rows under way as a table, and the count of those done above it."""
    left = f", about {clock(left_s)} left" if left_s is not None else ""
    shown = Table(title=f"{done} of {total} rows done{left}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("row", "phase", "micro-steps", "GiB now", "peak GiB", "time", "left"):
        shown.add_column(name, justify="left" if name in ("row", "phase") else "right", no_wrap=True)
    for state in states:
        shown.add_row(state.spec.row, *_where(state), clock(state.elapsed_s), _left(state.progress))
    return shown


def download_progress(spec: RowSpec, arrived: "Arrived") -> str:
    """How far a row's files have come, as a line."""
    files = f"{arrived.files} of {arrived.of_files} files"
    size = f"{arrived.bytes / MEGABYTE:.0f} of {arrived.of_bytes / MEGABYTE:.0f} MB"
    left = f", {clock(arrived.left_s)} left" if arrived.left_s is not None else ""
    return f"{spec.row}: coming home, {files}, {size}{left}"


def _where(state: State) -> tuple[str, str, str, str]:
    progress = state.progress
    if progress is None or state.waits:
        return state.waits or "starting", "", "", ""
    steps = f"{progress.micro_steps} of {progress.planned_micro_steps}"
    return progress.phase, steps, _gib(progress.allocated_gib), _gib(progress.memory.peak_gib)


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _left(progress: Progress | None) -> str:
    return clock(progress.left_s) if progress and progress.left_s is not None else ""
