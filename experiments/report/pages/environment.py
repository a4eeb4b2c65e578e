"""Load the templates of all pages, render them, and save pages."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.charts import SCRIPT, STYLE
from experiments.report.words import (
    ICONS,
    format_gib,
    format_memory,
    format_percent,
    format_share,
    format_stages,
    lower_first,
)
from experiments.results.wording import format_number, format_size, outcome_in_words, quantity_label, quantity_unit
from experiments.system.files import open_output
from provision.files import printable_value

FILTERS = (
    format_gib,
    format_memory,
    format_number,
    format_share,
    format_size,
    quantity_label,
    quantity_unit,
    format_percent,
    lower_first,
    format_stages,
)
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=printable_value,
)
SHOWN_FAILURES = 6
"""Maximum number of failed statements at the top of a report; further failures follow below."""
TEMPLATES.filters |= {function.__name__: function for function in FILTERS}
TEMPLATES.globals |= {
    "icons": ICONS,
    "shown_failures": SHOWN_FAILURES,
    "outcome_in_words": outcome_in_words,
    "chart_style": STYLE,
    "chart_script": SCRIPT,
}


def render_template(template: str, **values: Any) -> str:
    """Render the template with ``values`` and return the page. All values are escaped."""
    return TEMPLATES.get_template(template).render(**values)


def save_page(path: Path, page: str) -> None:
    """Write a page to ``path``, the value of the option --page. Raises InputError if the file cannot be written."""
    with open_output(path, "--page") as file:
        file.write(page)
