"""The templates of all pages."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.charts import SCRIPT, STYLE
from experiments.errors import InputError
from experiments.report.words import ICONS, gib, lower_first, percent, share, stages
from experiments.results.wording import OUTCOMES, label, number, unit

FILTERS = (gib, number, share, label, unit, percent, lower_first, stages)
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {made.__name__: made for made in FILTERS}
TEMPLATES.globals |= {"icons": ICONS, "outcomes": OUTCOMES, "chart_style": STYLE, "chart_script": SCRIPT}


def rendered(template: str, **values: Any) -> str:
    """Return a page from its template, in which all values are escaped."""
    return TEMPLATES.get_template(template).render(**values)


def save(path: Path, page: str) -> None:
    """Write a page to the place that --page names. Raises InputError if it cannot be written."""
    try:
        path.write_text(page)
    except OSError as error:
        raise InputError(f"--page {path}: cannot be written ({error.strerror})") from None
