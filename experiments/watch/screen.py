"""The live view in a terminal: all rows, load and log of the selected row, and each verdict when it is reached."""

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Label, RichLog, Sparkline, Static

from experiments.errors import InputError
from experiments.results.verdicts import Grade, Status, Verdict
from experiments.results.wording import format_duration, format_number, format_size, is_miniature_that_ran
from experiments.runners.progress import OUTCOME_STYLES, steps_in_words
from experiments.watch.state import LOAD_COLUMNS, Curve, RowStatus, RunStatus, RunWatcher
from provision.files import printable

READ_INTERVAL_S = 1.0
COST_INTERVAL_S = 60.0
SAMPLES = 240
"""Number of samples, the newest ones, that a curve shows: two minutes at a sample every 0.5 s."""
NARROW_BELOW = 80
"""Width in columns. In a narrower terminal, the load is above the log, not beside it."""
COLUMNS = ("row", "state", "micro-steps", "memory", "peak", "time", "left", "predicted at full size")
VERDICT_STYLES = {"pass": "green", "fail": "red", "error": "red"}


class WatchApp(App[None]):
    """Shows a run until the user quits. cost: function, possibly slow, that returns the lease's cost so far as text.

    Without a lease, ``cost`` returns "".
    """

    TITLE = "testbed watch"
    BINDINGS = [("q", "quit", "Quit")]  # noqa: RUF012 - as Textual declares it
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (NARROW_BELOW, "-wide")]  # noqa: RUF012 - as Textual declares it
    CSS = """
    #headline { width: 100%; padding: 0 1; text-style: bold; }
    #cost { width: 100%; padding: 0 1; }
    #rows { height: 1fr; }
    #below { height: 1fr; }
    #load { width: 2fr; padding: 0 1; }
    #load Sparkline { height: 2; }
    #log { width: 3fr; border: round $secondary; border-title-color: $foreground; }
    #verdicts { height: 25%; border: round $secondary; border-title-color: $foreground; }
    .-narrow #below { layout: vertical; }
    .-narrow #load { width: 100%; height: auto; }
    .-narrow #log { width: 100%; height: 1fr; }
    """

    def __init__(self, watcher: RunWatcher, cost: Callable[[], str]) -> None:
        super().__init__()
        self._watcher, self._ask_cost = watcher, cost
        self._log_lines: Sequence[str] = ()
        self._shown_verdicts: dict[str, tuple[Status, Grade | None]] = {}

    def compose(self) -> ComposeResult:
        """Create the widgets."""
        self._headline = Label("", id="headline", markup=False)
        self._cost = Label("", id="cost", markup=False)
        self._table: DataTable[Text] = DataTable(id="rows", cursor_type="row")
        self._charts = [(Static("", markup=False), Sparkline([])) for _ in LOAD_COLUMNS]
        self._log_view = RichLog(id="log", wrap=True, min_width=0)
        self._verdicts = RichLog(id="verdicts", wrap=True, min_width=0)
        self._verdicts.border_title = "verdicts"
        yield self._headline
        yield self._cost
        yield self._table
        yield Horizontal(Vertical(*chain(*self._charts), id="load"), self._log_view, id="below")
        yield self._verdicts
        yield Footer()

    def on_mount(self) -> None:
        """Show the run now and every READ_INTERVAL_S seconds."""
        for name in COLUMNS:
            self._table.add_column(name, key=name)
        self.show()
        self.set_interval(READ_INTERVAL_S, self.show)
        self.show_cost()
        self.set_interval(COST_INTERVAL_S, self.show_cost)

    def show(self) -> None:
        """Read the run and show it."""
        try:
            run_status = self._watcher.read()
        except InputError as problem:
            self._headline.update(str(problem))
            return
        _set_text(self._headline, headline(run_status))
        self._show_rows(run_status.rows)
        self._show_verdicts(run_status.verdicts)
        self._show_selected()

    @work(thread=True, exclusive=True)
    def show_cost(self) -> None:
        """Query the cost of the lease and show it."""
        self.call_from_thread(self._cost.update, self._ask_cost())

    def on_data_table_row_highlighted(self) -> None:
        """Show load and log of the row that was chosen."""
        self._show_selected()

    def _show_rows(self, rows: Sequence[RowStatus]) -> None:
        for row in rows:
            if row.row not in self._table.rows:
                self._table.add_row(*cells(row), key=row.row)
                continue
            for name, cell in zip(COLUMNS, cells(row), strict=True):
                if cell != self._table.get_cell(row.row, name):
                    self._table.update_cell(row.row, name, cell, update_width=True)

    def _show_selected(self) -> None:
        if not self._table.row_count:
            return
        row = str(self._table.coordinate_to_cell_key(self._table.cursor_coordinate).row_key.value)
        self._show_load(self._watcher.load_over_time(row))
        lines = self._watcher.end_of_row_log(row)
        title = f"log of {row}" + ("" if lines else ": nothing yet")
        if title != self._log_view.border_title:
            self._log_view.border_title = title
        if lines != self._log_lines:
            self._log_view.clear()
            for line in lines:
                self._log_view.write(Text(line))
            self._log_lines = lines

    def _show_load(self, curves: Sequence[Curve]) -> None:
        for (name, chart), curve in zip_longest(self._charts, curves):
            name.display = chart.display = curve is not None
            if curve:
                newest, highest = (format_number(value) for value in (curve.values[-1], max(curve.values)))
                _set_text(name, f"{curve.name}: {newest} {curve.unit}, highest {highest}")
                chart.data = curve.values[-SAMPLES:]
        if not curves:
            name = self._charts[0][0]
            name.display = True
            _set_text(name, "load of this row: not measured yet")

    def _show_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        graded = {one.id: (one.status, one.grade) for one in verdicts}
        for verdict in verdicts:
            if verdict.grade and self._shown_verdicts.get(verdict.id) != graded[verdict.id]:
                self._verdicts.write(verdict_line(verdict))
        self._shown_verdicts = graded


def _set_text(widget: Static, text: str) -> None:
    """Show the text. If the widget shows it already, do nothing, because an update draws the whole screen."""
    if widget.content != text:
        widget.update(text)


def headline(run_status: RunStatus) -> str:
    """Return the run as one line: its name, its progress, its verdicts so far, and whether it still runs."""
    parts = [run_status.run.run_id, f"{run_status.rows_done} of {len(run_status.rows)} rows done"]
    running = sum(row.is_running for row in run_status.rows)
    if running and run_status.active:
        parts.append(f"{running} running")
    elif run_status.active and run_status.rows_done < len(run_status.rows):
        parts.append("preparing: rows are predicted and libraries compiled first")
    for status in ("fail", "error", "pass"):
        if count := sum(verdict.status == status for verdict in run_status.verdicts):
            parts.append(f"{count} {status}")
    if run_status.gpu_hours:
        parts.append(f"{format_number(run_status.gpu_hours)} GPU-hours")
    if not run_status.active and run_status.rows_done < len(run_status.rows):
        parts.append("not running now: `testbed run` with the same options resumes it")
    return printable(" · ".join(parts))


def cells(row: RowStatus) -> tuple[Text, ...]:
    """Return the cells of a row, one for each of COLUMNS."""
    progress, result = row.progress, row.result
    allocated = progress.allocated_gib if progress else None
    memory = result.memory if result else progress.memory if progress else None
    left_s = progress.left_s if progress else None
    texts = (
        "" if progress is None else steps_in_words(progress),
        "" if allocated is None else format_size(allocated),
        "" if memory is None or memory.peak_gib is None else format_size(memory.peak_gib),
        "" if row.elapsed_s is None else format_duration(row.elapsed_s),
        "" if left_s is None else format_duration(left_s),
    )
    return (
        Text(printable(row.row)),
        Text(printable(row.state), style=_row_style(row)),
        *(Text(text, justify="right") for text in texts),
        Text(printable(row.predicted)),
    )


def _row_style(row: RowStatus) -> str:
    if row.result is None:
        return "bold" if row.is_running else "dim"
    return "" if is_miniature_that_ran(row.result) else OUTCOME_STYLES.get(row.result.outcome, "red")


def verdict_line(verdict: Verdict) -> Text:
    """Return a verdict as one line, with its value, or if the statement does not pass, with the reason."""
    grade = f" ({verdict.grade})" if verdict.grade else ""
    basis = verdict.value if verdict.status == "pass" else verdict.reason or verdict.value
    status = Text(f"{verdict.status}{grade}", style=VERDICT_STYLES.get(verdict.status, ""))
    return Text.assemble(status, printable(f" {verdict.says}" + (f" ({basis})" if basis else "")))
