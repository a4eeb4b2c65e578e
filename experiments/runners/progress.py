"""Show the progress of a run: one line when a row starts and when it ends, and on a terminal also a live table."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live

from experiments.results.schema import Progress, Result
from experiments.results.wording import format_duration, format_size, is_miniature_that_ran, outcome_in_words
from experiments.runners.plan import PlannedRow
from experiments.suites.row_spec import RowSpec
from experiments.system.tables import Column, Table, print_lines

if TYPE_CHECKING:
    from experiments.runners.slurm.download import TransferProgress

MEGABYTE = 1_000_000
REFRESH_INTERVAL_S = 0.25
OUTCOME_STYLES = {"fits": "green", "oom": "yellow", "rejected": "dim"}


@dataclass(frozen=True)
class RowState:
    """A row that has not ended, its time so far and its progress report.

    status: shown in place of the progress report, such as 'queued (Resources)' or 'ending'; empty while the row trains.
    """

    spec: RowSpec
    elapsed_s: float
    progress: Progress | None
    status: str = ""


class View:
    """Prints one line for each event of a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at_full_size: Mapping[str, str] = {}
        self._expected: Mapping[str, str] = {}

    def live(self) -> AbstractContextManager[object]:
        """Return a context manager, which the runner enters while rows run."""
        return nullcontext()

    def show_predictions(self, table: RenderableType, at_full_size: Mapping[str, str]) -> None:
        """Print predictions. at_full_size: the prediction by row, shown when a row with a tiny model ends."""
        self._console.print(table)
        self._at_full_size = at_full_size

    def set_expected_times(self, times: Mapping[str, tuple[float, float]]) -> None:
        """Set the expected times of rows: lowest and highest, s. They are shown when a row starts and while it runs."""
        self._expected = {row: _duration_range(*bounds) for row, bounds in times.items()}

    def report_kept(self, row: PlannedRow) -> None:
        """Print that the row keeps its result."""
        self._print(f"{row.row}: result kept ({row.why})")

    def report_start(self, spec: RowSpec, why: str) -> None:
        """Print that the row starts."""
        expected = self._expected.get(spec.row)
        self._print(f"{spec.row}: starts ({why})" + (f", expected to take {expected}" if expected else ""))

    def report_end(self, spec: RowSpec, result: Result) -> None:
        """Print the row's outcome, peak memory and time. If the row does not fit, also print the reason.

        For a tiny model, also print the prediction at full size, because a tiny model does not show what fits the card.
        """
        miniature = is_miniature_that_ran(result)
        peak = result.memory.peak_gib
        measured = [f"peak {format_size(peak)}"] if peak is not None else []
        measured += [f"{result.elapsed_s:.0f} s"] if result.elapsed_s else []
        words = ", ".join([outcome_in_words(result.outcome, result.spec.size), *measured])
        reason = f": {result.reason}" if result.outcome != "fits" else ""
        predicted = self._at_full_size.get(spec.row) if miniature else None
        full_size = f"; at full size on {spec.card}: {predicted}" if predicted else ""
        style = "" if miniature else OUTCOME_STYLES.get(result.outcome, "red")
        self._print(f"{spec.row}: {words}{reason}{full_size}", style)

    def print_line(self, text: str) -> None:
        """Print a message."""
        self._print(text)

    def print_warning(self, text: str) -> None:
        """Print a warning."""
        self._print(text, "red")

    def show_rows(self, states: Sequence[RowState], done: int, total: int, left_s: float | None) -> None:
        """Show the running rows, and how many of ``total`` rows are done. Only a view on a terminal does so: LiveView.

        left_s: remaining time of the run in seconds; None: unknown.
        """

    def show_download(self, spec: RowSpec, transfer: "TransferProgress") -> None:
        """Show the progress of the download of the row's files, on a terminal only."""

    def _print(self, line: str, style: str = "") -> None:
        print_lines(self._console, line, style)


class LiveView(View):
    """A view that prints the same lines as View, with a live table of the running rows below them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._table = progress_table([], 0, 0, None)
        self._download_shown_at = 0.0

    def live(self) -> AbstractContextManager[object]:
        return self._live

    def show_rows(self, states: Sequence[RowState], done: int, total: int, left_s: float | None) -> None:
        self._table = progress_table(states, done, total, left_s, self._expected)
        self._live.update(self._table, refresh=True)

    def show_download(self, spec: RowSpec, transfer: "TransferProgress") -> None:
        if time.monotonic() - self._download_shown_at > REFRESH_INTERVAL_S:
            self._live.update(Group(self._table, download_progress(spec, transfer)), refresh=True)
            self._download_shown_at = time.monotonic()


def view_on(console: Console) -> View:
    """Return a LiveView for a terminal, a View for any other console."""
    return LiveView(console) if console.is_terminal else View(console)


def progress_table(
    states: Sequence[RowState], done: int, total: int, left_s: float | None, expected: Mapping[str, str] | None = None
) -> Table:
    """Return a table of rows that have started and not ended. The title has the numbers of done and of waiting rows.

    left_s: remaining seconds of the run; None: unknown. expected: the expected time of each row, in words.
    """
    waiting = total - done - len(states)
    wait = f"; {waiting} waiting" if waiting else ""
    left = f", about {format_duration(max(1.0, left_s))} left" if left_s is not None else ""
    rows = Table(
        "row",
        Column("phase", prose=True),
        *(Column(name, number=True, optional=1) for name in ("micro-steps", "now", "peak")),
        Column("time", number=True),
        *([Column("expected", number=True, optional=1)] if expected else []),
        Column("left", number=True),
        title=f"{done} of {total} rows done{left}{wait}",
    )
    for state in states:
        rows.add(
            state.spec.row,
            *_progress_cells(state),
            format_duration(state.elapsed_s),
            *([expected.get(state.spec.row, "")] if expected else []),
            _row_time_left(state.progress),
        )
    return rows


def _duration_range(low_s: float, high_s: float) -> str:
    low, high = format_duration(low_s), format_duration(high_s)
    return low if low == high else f"{low} to {high}"


def steps_in_words(progress: Progress) -> str:
    """Return the completed and the planned micro-steps, such as '3 of 8'; empty while the plan is unknown."""
    planned = progress.planned_micro_steps
    return f"{progress.micro_steps} of {planned}" if planned else ""


def download_progress(spec: RowSpec, transfer: "TransferProgress") -> str:
    """Return the progress of downloading the row's files in one line."""
    files = f"{transfer.files} of {transfer.total_files} files"
    size = f"{transfer.bytes / MEGABYTE:.0f} of {transfer.total_bytes / MEGABYTE:.0f} MB"
    left = f", {format_duration(transfer.left_s)} left" if transfer.left_s is not None else ""
    return f"{spec.row}: downloading, {files}, {size}{left}"


def _progress_cells(state: RowState) -> tuple[str, str, str, str]:
    progress = state.progress
    if progress is None or state.status:
        return state.status or "starting", "", "", ""
    return (
        progress.phase,
        steps_in_words(progress),
        _format_memory(progress.allocated_gib),
        _format_memory(progress.memory.peak_gib),
    )


def _format_memory(gib: float | None) -> str:
    return "" if gib is None else format_size(gib)


def _row_time_left(progress: Progress | None) -> str:
    return format_duration(progress.left_s) if progress and progress.left_s is not None else ""
