"""Write the history as a page that needs no network: changes, the verdicts of each run, trends of measured values."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from experiments.charts import Chart, Line, Panel, line_chart
from experiments.history.changes import RunChanges
from experiments.history.series import Series
from experiments.report.pages.environment import render_template, save_page
from experiments.results.wording import quantity_label, quantity_unit

TREND_QUANTITIES = ("peak_gib", "reserved_gib", "step_s", "last_loss")
DAY_S = 86400


def write_history_page(path: Path, changes_of_series: Sequence[tuple[Series, list[RunChanges]]]) -> Path:
    """Write the page of several series with their changes, oldest first, to ``path``; return the path."""
    shown = [
        (series, changed[::-1], series.statuses_by_statement, _trends(series)) for series, changed in changes_of_series
    ]
    save_page(path, render_template("history.html", shown=shown))
    return path


def _trends(series: Series) -> list[tuple[str, Chart]]:
    """Return the chart of each row: a panel for each quantity over the days since the first run."""
    rows = dict.fromkeys(row for row, _ in series.keys)
    return [(row, chart) for row in rows if (chart := _trend(series, row))]


def _trend(series: Series, row: str) -> Chart | None:
    trends = {name: series.values((row, name)) for name in TREND_QUANTITIES}
    panels = [
        Panel(quantity_label(name), quantity_unit(name), [Line("", values)])
        for name, values in trends.items()
        if any(value is not None for value in values)
    ]
    if len(series.runs) < 2 or not panels:
        return None
    days = [datetime.fromisoformat(run.started_at).timestamp() / DAY_S for run in series.runs]
    names = ", ".join(panel.title for panel in panels)
    return line_chart(
        panels, [day - days[0] for day in days], "days since the first run", f"{names} of {row} over time"
    )
