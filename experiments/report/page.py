"""report.html: one self-contained file, rendered from a Report."""

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.charts import SCRIPT, STYLE
from experiments.report.content import Report, RowReport
from experiments.report.figures import figures
from experiments.report.words import ICONS, STATUSES, gib, lower_first, percent, share, stages
from experiments.results.memory_parts import BUFFERS, COLUMNS
from experiments.results.wording import GRADES, label, number, unit

TEMPLATES = Path(__file__).parent / "templates"


def page(report: Report) -> str:
    """Return the report as one HTML file that needs no network: styles, charts and a small script are inside."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"gib": gib, "number": number, "share": share, "label": label, "unit": unit}
    environment.filters |= {"worst_first": worst_first}
    environment.filters |= {"percent": percent, "lower_first": lower_first, "stages": stages}
    return environment.get_template("report.html").render(
        report=report,
        figures=figures(report),
        icons=ICONS,
        grades=GRADES,
        memory_columns=COLUMNS,
        snapshot_parts=[part for part in COLUMNS if part != BUFFERS],
        chart_style=STYLE,
        chart_script=SCRIPT,
    )


def worst_first(rows: Iterable[RowReport]) -> list[RowReport]:
    """Return the rows in the order of STATUSES; those of one status in the suite's order, those without one last."""
    order = [*STATUSES, None]
    return sorted(rows, key=lambda row: order.index(row.status))
