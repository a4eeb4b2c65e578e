"""Render report.html, one self-contained file, from a Report."""

from collections.abc import Iterable

from experiments.report.content import Report, RowReport
from experiments.report.pages.charts import report_charts
from experiments.report.pages.environment import render_template
from experiments.report.words import STATUSES
from experiments.results.memory_parts import BUFFERS, PART_COLUMNS
from experiments.results.wording import GRADE_NAMES, choose_memory_unit


def render_report(report: Report) -> str:
    """Return the report as one HTML file that needs no network: styles, charts and a small script are inside."""
    return render_template(
        "report.html",
        report=report,
        rows=_worst_first(report.rows),
        figures=report_charts(report),
        unit=choose_memory_unit(max((row.quantities["peak_gib"] or 0.0 for row in report.rows), default=0.0)),
        grades=GRADE_NAMES,
        memory_columns=PART_COLUMNS,
        snapshot_parts=[part for part in PART_COLUMNS if part != BUFFERS],
    )


def _worst_first(rows: Iterable[RowReport]) -> list[RowReport]:
    """Return the rows in the order of STATUSES, then in the suite's order; rows without a status last."""
    order = [*STATUSES, None]
    return sorted(rows, key=lambda row: order.index(row.status))
