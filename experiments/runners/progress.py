"""Progress of a run: a live table on a terminal; elsewhere one line when a row starts and one when it ends."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live

from experiments.results.schema import Progress, Result
from experiments.results.wording import OUTCOME_NAMES, format_duration, format_size
from experiments.runners.plan import Planned
from experiments.suites.row_spec import RowSpec
from experiments.system.tables import Column, Table, print_lines

if TYPE_CHECKING:
    from experiments.runners.slurm.download import TransferProgress

MEGABYTE = 1_000_000
REFRESH_S = 0.25
STYLES = {"fits": "green", "oom": "yellow", "refused": "dim"}


@dataclass(frozen=True)
class RowState:
    """A row that has not ended: its time so far, its progress report, and ``instead``: what it does outside of these.

    For example 'queued (Resources)' before it starts, 'ending' after its last step; otherwise empty.
    """

    spec: RowSpec
    elapsed_s: float
    progress: Progress | None
    instead: str = ""


class View:
    """Prints one line for each event of a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at_full_size: Mapping[str, str] = {}

    def live(self) -> AbstractContextManager[object]:
        """Return the context that the runner enters while rows run."""
        return nullcontext()

    def predicts(self, table: RenderableType, at_full_size: Mapping[str, str]) -> None:
        """Print predictions; ``at_full_size``: what is predicted of each row, shown when its miniature ends."""
        self._console.print(table)
        self._at_full_size = at_full_size

    def keeps(self, row: Planned) -> None:
        """Print that the row keeps its result."""
        self._print(f"{row.row}: kept ({row.why})")

    def starts(self, spec: RowSpec, why: str) -> None:
        """Print that the row starts."""
        self._print(f"{spec.row}: starts ({why})")

    def ends(self, spec: RowSpec, result: Result) -> None:
        """Print the outcome of the row, with its peak memory, its time, and the reason unless it fits.

        A miniature that ran says nothing of the card: what is predicted at full size stands beside it.
        """
        miniature = spec.size == "tiny" and result.outcome == "fits"
        peak = result.memory.peak_gib
        measured = [f"peak {format_size(peak)}"] if peak is not None else []
        measured += [f"{result.elapsed_s:.0f} s"] if result.elapsed_s else []
        words = ", ".join(["ran (miniature)" if miniature else OUTCOME_NAMES[result.outcome], *measured])
        reason = f": {result.reason}" if result.outcome != "fits" else ""
        predicted = self._at_full_size.get(spec.row) if miniature else None
        beside = f"; at full size on {spec.card}: {predicted}" if predicted else ""
        style = "" if miniature else STYLES.get(result.outcome, "red")
        self._print(f"{spec.row}: {words}{reason}{beside}", style)

    def says(self, text: str) -> None:
        """Print a message."""
        self._print(text)

    def warns(self, text: str) -> None:
        """Print a warning."""
        self._print(text, "red")

    def shows(self, states: Sequence[RowState], done: int, total: int, left_s: float | None) -> None:
        """Show the running rows, how many of ``total`` rows are done, and the remaining time if it is known."""

    def downloading(self, spec: RowSpec, transfer: "TransferProgress") -> None:
        """Show the progress of the download of the row's files."""

    def _print(self, line: str, style: str = "") -> None:
        print_lines(self._console, line, style)


class Screen(View):
    """Prints the same lines as View, and below them a live table of the running rows."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._table = table([], 0, 0, None)
        self._shown = 0.0

    def live(self) -> AbstractContextManager[object]:
        return self._live

    def shows(self, states: Sequence[RowState], done: int, total: int, left_s: float | None) -> None:
        self._table = table(states, done, total, left_s)
        self._live.update(self._table, refresh=True)

    def downloading(self, spec: RowSpec, transfer: "TransferProgress") -> None:
        if time.monotonic() - self._shown > REFRESH_S:
            self._live.update(Group(self._table, download_progress(spec, transfer)), refresh=True)
            self._shown = time.monotonic()


def view_on(console: Console) -> View:
    """Return a Screen for a terminal, a View for any other console."""
    return Screen(console) if console.is_terminal else View(console)


def table(states: Sequence[RowState], done: int, total: int, left_s: float | None) -> Table:
    """Return the rows that have not ended as a table, titled with the number of rows that are done and that wait."""
    waiting = total - done - len(states)
    wait = f"; {waiting} wait{'s' if waiting == 1 else ''}" if waiting else ""
    left = f", about {format_duration(max(1.0, left_s))} left" if left_s is not None else ""
    rows = Table(
        "row",
        Column("phase", prose=True),
        *(Column(name, number=True, optional=1) for name in ("micro-steps", "now", "peak")),
        *(Column(name, number=True) for name in ("time", "left")),
        title=f"{done} of {total} rows done{left}{wait}",
    )
    for state in states:
        rows.add(state.spec.row, *_position(state), format_duration(state.elapsed_s), _left(state.progress))
    return rows


def steps_of(progress: Progress) -> str:
    """Return the micro-steps so far, of those that are planned; empty before they are known."""
    planned = progress.planned_micro_steps
    return f"{progress.micro_steps} of {planned}" if planned else ""


def download_progress(spec: RowSpec, transfer: "TransferProgress") -> str:
    """Return the progress of the download of a row's files as a line."""
    files = f"{transfer.files} of {transfer.of_files} files"
    size = f"{transfer.bytes / MEGABYTE:.0f} of {transfer.of_bytes / MEGABYTE:.0f} MB"
    left = f", {format_duration(transfer.left_s)} left" if transfer.left_s is not None else ""
    return f"{spec.row}: downloading, {files}, {size}{left}"


def _position(state: RowState) -> tuple[str, str, str, str]:
    progress = state.progress
    if progress is None or state.instead:
        return state.instead or "starting", "", "", ""
    return progress.phase, steps_of(progress), _size(progress.allocated_gib), _size(progress.memory.peak_gib)


def _size(gib: float | None) -> str:
    return "" if gib is None else format_size(gib)


def _left(progress: Progress | None) -> str:
    return format_duration(progress.left_s) if progress and progress.left_s is not None else ""
