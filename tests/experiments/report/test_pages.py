"""All pages in a real browser: accessible, below 500 kB, complete without JavaScript, and without network requests."""

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from experiments.charts import Band, Line, Panel, line_chart
from experiments.history.changes import run_changes
from experiments.history.database import open_history, record_run
from experiments.history.page import write_history_page as write_history_page
from experiments.history.series import read_series
from experiments.notebooks.lab import row_definition
from experiments.report.compare import compare
from experiments.report.pages.comparison import write_comparison
from experiments.report.pages.index import write_index
from experiments.report.pages.script import write_script_page
from experiments.report.write import write_report
from experiments.results.run_folder import RunFolder
from experiments.semester.outcome import Flip, outcome_of
from experiments.semester.outputs import write_page as write_semester_page
from experiments.semester.parts import CheckPart
from experiments.semester.state import Check, EndedPart
from experiments.semester.versions import VERSION_SETS
from experiments.suites.suite import suite_named
from tests.experiments.cli.predict.test_predict_script import prediction
from tests.support.results.handwritten import SUITE, h200_run, ranks_run, tiny_run, with_predictions, worse_run
from tests.support.results.semesters import repeat_run
from tests.support.services.chromium import Page, chromium_path

LIMIT_BYTES = 500_000
AXE = """axe.run(document, {resultTypes: ["violations"]}).then((found) =>
  found.violations.map((one) => one.id + ": " + one.nodes.slice(0, 3).map((node) => node.target).join(" ")))"""
PAGES = ("h200", "tiny", "ranks", "index", "notebook", "script", "comparison", "history", "semester")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("results")
    runs = {
        "h200": with_predictions(h200_run(root / "h200")),
        "tiny": with_predictions(tiny_run(root / "tiny")),
        "ranks": ranks_run(root / "ranks"),
    }
    row = suite_named(SUITE).row("baseline")
    chart = line_chart([Panel("busy", "%", [Line("GPU", [0, 1])])], [0, 1], "s", "load", [Band("load", 0, 1)])
    outputs = [
        new_output("stream", text="\x1b[31mout</pre><script>alert(1)</script>"),
        new_output(
            "display_data", data={"image/svg+xml": chart.standalone_svg(), "text/html": "<script>alert(2)</script>"}
        ),
        new_output(
            "display_data", data={"text/markdown": "| a |\n|---|\n| <script>alert(3)</script> [x](javascript:x) |"}
        ),
        new_output("display_data", data={"text/markdown": markdown_table(columns=24)}),
        new_output("display_data", data={"text/markdown": row_definition(row, "lightning")}),
    ]
    notebook = root / "h200" / SUITE / "baseline" / "notebook.ipynb"
    notebook.write_text(json.dumps(new_notebook(cells=[new_code_cell("run()", outputs=outputs)])))
    found = {name: write_report(folder).page for name, folder in runs.items()}
    write_script_page(root / "script.html", ["python", "train.py"], [prediction(40.0)])
    write_comparison(root / "comparison.html", compare(runs["h200"], worse_run(root / "worse")))
    return {
        **found,
        "comparison": root / "comparison.html",
        "index": write_index(root),
        "notebook": notebook.with_name("notebook.html"),
        "script": root / "script.html",
        "history": history_page(root / "term"),
        "semester": semester_page(root / "semester", runs["tiny"]),
    }


def markdown_table(columns: int) -> str:
    rows = (["activations"] * columns, ["---"] * columns, ["13.95"] * columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def semester_page(folder: Path, run: RunFolder) -> Path:
    """Write the page of a check before a semester, with runs, changed statuses, problems and fixes."""
    parts = [CheckPart("current", "miniatures", SUITE, "a100_80gb"), CheckPart("newest", "environment")]
    begun = datetime(2026, 11, 28, 3, tzinfo=UTC)
    done = {
        parts[0].name: EndedPart(took_s=600.0),
        parts[1].name: EndedPart(took_s=9.0, problem="torch 9.9 is not found"),
    }
    versions = {"current": {"torch": "2.13.0", "transformers": "5.17.0"}}
    names = tuple(part.name for part in parts)
    check = Check(
        begun_at=begun, ended_at=begun, command="testbed semester", plan=names, version_sets=VERSION_SETS, done=done
    )
    place = folder / "2026-11-28T030000"
    shutil.copytree(run.path, place / parts[0].name / run.path.name)
    found = outcome_of(place, check.model_copy(update={"installed": versions}), parts)
    flip = Flip("current: a lab on a100_80gb", "xxl fits pass → fail", ("torch 2.12.0 → 2.13.0", "driver 580 → 590"))
    before = check.model_copy(update={"begun_at": begun - timedelta(days=7)})
    return write_semester_page(place, replace(found, previous_check=before, flips=(flip,)))


def history_page(folder: Path) -> Path:
    with open_history(folder / "history.db", create=True) as database:
        for week in range(4):
            record_run(database, repeat_run(folder, week, other_settings if week == 3 else None))
        several = read_series(database)
    return write_history_page(folder / "history.html", [(series, run_changes(series)) for series in several])


def other_settings(result: dict[str, Any]) -> None:
    result["spec"]["settings"]["seed"] += 1
    result["versions"]["torch"] = "2.12.0"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(chromium_path(), tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def axe() -> str:
    package = importlib.util.find_spec("axe_core_python")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name("axe.min.js").read_text()


def open_page(browser: Page, page: Path, width: int, scheme: str) -> None:
    browser.set_window(width, scheme)
    browser.call("Page.navigate", url=page.as_uri())
    browser.until("document.readyState === 'complete' && document.querySelector('main')")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (768, "dark"), (390, "light"), (390, "dark")])
def test_a_page_has_no_violation_of_accessibility_and_fits_its_window(browser, pages, name, width, scheme):
    script = axe()
    open_page(browser, pages[name], width, scheme)
    browser.evaluate("[...document.querySelectorAll('details.row')].slice(0, 1).forEach((one) => (one.open = true))")
    browser.evaluate(script + "; true")
    assert browser.evaluate(AXE) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("problems") == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small_and_requests_nothing_from_a_network(browser, pages, name):
    before = len(browser.requests)
    open_page(browser, pages[name], 1440, "light")
    assert pages[name].stat().st_size < LIMIT_BYTES
    assert [url for url in browser.requests[before:] if not url.startswith(("file:", "data:"))] == []
    policy = browser.evaluate("document.querySelector('[http-equiv=Content-Security-Policy]').content")
    assert policy.startswith("default-src 'none'")
    assert ("script-src" in policy) == (name in ("h200", "tiny", "ranks"))


@pytest.mark.parametrize("name", ["h200", "ranks", "script", "comparison"])
def test_charts_are_drawn_without_javascript(browser, pages, name, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(re.sub(r"<script>.*?</script>", "", pages[name].read_text(), flags=re.S))
    open_page(browser, page, 1440, "light")
    assert browser.evaluate("document.querySelector('.tip')") is None
    charts = "[...document.querySelectorAll('.chart > svg')].filter((one) => one.checkVisibility())"
    assert browser.evaluate(f"{charts}.length") >= 1
    assert browser.evaluate(f"{charts}.every((one) => one.getBBox().width > 500)")


def test_settings_and_code_of_a_row_unfold_on_a_notebook_page(browser, pages):
    open_page(browser, pages["notebook"], 1440, "light")
    shown = "document.querySelector('.markdown details pre').checkVisibility()"
    assert not browser.evaluate(shown)
    browser.evaluate("document.querySelector('.markdown summary').click()")
    assert browser.evaluate(shown)
    assert "details>" not in browser.evaluate("document.body.innerText")


def test_a_notebook_page_shows_its_outputs_and_runs_no_code_in_them(browser, pages):
    open_page(browser, pages["notebook"], 1440, "light")
    source = pages["notebook"].read_text()
    assert "<script" not in source
    assert "javascript:" not in source.replace("(javascript:x)", "")
    assert browser.evaluate("document.querySelectorAll('img').length") == 1
    assert browser.evaluate("document.images[0].naturalWidth") > 500
    text = browser.evaluate("document.body.innerText")
    assert "out</pre><script>alert(1)</script>" in text
    assert "alert(2)" not in source
    assert browser.evaluate("document.querySelector('table').rows.length") == 2


@pytest.mark.parametrize("width", [390, 820])
def test_a_wide_table_of_a_notebook_scrolls_while_its_first_column_stays(
    browser: Page, pages: dict[str, Path], width: int
):
    open_page(browser, pages["notebook"], width, "light")
    browser.evaluate("document.querySelectorAll('.scroll')[1].focus()")
    assert browser.evaluate("document.activeElement.querySelectorAll('th').length") == 24
    browser.evaluate("document.activeElement.scrollTo(9999, 0)")
    left, right = "getBoundingClientRect().left", "getBoundingClientRect().right"
    region = browser.evaluate(f"document.activeElement.{left}")
    first = browser.evaluate(f"document.activeElement.querySelector('td').{left}")
    last = browser.evaluate(f"[...document.activeElement.querySelectorAll('th')].at(-1).{right}")
    assert region <= first < region + 3
    assert last <= width


COLUMN_ENDS = "[...document.querySelectorAll('thead th')].map((one) => one.getBoundingClientRect().right)"
FIRST_FAILURE = "document.querySelector('.failures a').getBoundingClientRect().bottom"


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_failures_and_their_reasons_are_visible_without_scrolling(
    browser: Page, pages: dict[str, Path], width: int, height: int
):
    browser.set_window(width, "light")
    browser.call("Page.navigate", url=pages["h200"].as_uri())
    browser.until("document.readyState === 'complete'")
    assert 0 < browser.evaluate(FIRST_FAILURE) < height
    shown = browser.evaluate("[...document.querySelectorAll('.failures li')].map((one) => one.innerText)")
    assert len(shown) == 6
    claim = next(one for one in shown if "A smaller batch needs substantially less memory for activations." in one)
    bound, measured = "at most 0.7 times baseline's", "0.987 times baseline's (14.9 vs. 15.1 GiB)"
    what = "reduced-batch: activations"
    assert f"expected {what} {bound}; measured {what} {measured}" in claim
    target = browser.evaluate("document.querySelector(document.querySelector('.failures a').hash).className")
    assert target == "statement fail"


def test_the_name_of_a_row_is_on_one_line_in_a_narrow_window(browser: Page, pages: dict[str, Path]):
    browser.set_window(390, "light")
    browser.call("Page.navigate", url=pages["h200"].as_uri())
    browser.until("document.readyState === 'complete'")
    lines = browser.evaluate("""[...document.querySelectorAll('table.rows.cards th[scope="row"] a')].map((name) =>
      name.getClientRects().length)""")
    assert lines
    assert set(lines) == {1}


PAPER = {"portrait": (703, 1032), "landscape": (1032, 703)}
"""Width and height of A4 without its margins of 12 mm, in px."""
WITH_CHARTS = {"portrait": ("h200", "tiny", "comparison", "history"), "landscape": ("h200", "tiny")}
ON_PAPER = """[...document.querySelectorAll('{kind}')].filter((one) => !one.closest('.landscape') == {portrait})
  .map((one) => one.getBoundingClientRect().{measure})"""
OPENED = "[...document.querySelectorAll('details.worst h3')].map((one) => one.getBoundingClientRect().height)"


@pytest.mark.parametrize("orientation", PAPER)
@pytest.mark.parametrize("name", PAGES)
def test_a_printed_page_shows_every_table_and_chart_completely(
    browser: Page, pages: dict[str, Path], name: str, orientation: str
):
    """No table or chart is cut at the right, every chart fits on one page, and the details of failed rows are open."""
    width, height = PAPER[orientation]
    open_page(browser, pages[name], width, "light")
    browser.call("Emulation.setEmulatedMedia", media="print")
    portrait = str(orientation == "portrait").lower()
    ends = browser.evaluate(ON_PAPER.format(kind="table, .chart", measure="right", portrait=portrait))
    charts = browser.evaluate(ON_PAPER.format(kind=".chart", measure="height", portrait=portrait))
    headings = browser.evaluate(OPENED)
    browser.call("Emulation.setEmulatedMedia", media="")
    assert max(ends, default=0) <= width
    assert max(charts, default=0) <= height
    assert all(height > 0 for height in headings)
    assert charts or name not in WITH_CHARTS[orientation]
    assert headings or name != "h200"


def test_statements_about_rows_that_have_not_run_are_shown_as_one_group(tmp_path: Path):
    folder = h200_run(tmp_path / "run")
    for row in ("grad-accumulation", "xxl-sgd", "mixed-precision"):
        shutil.rmtree(folder.path / SUITE / row)
    page = write_report(folder).page.read_text()
    assert page.count("rows have not run <span") == 1
    assert "<summary>xxl-sgd has not run" not in page


@pytest.mark.parametrize(("width", "runs"), [(390, 1), (820, 4)])
def test_verdicts_of_earlier_runs_are_next_to_their_statements(
    browser: Page, pages: dict[str, Path], width: int, runs: int
):
    browser.set_window(width, "light")
    browser.call("Page.navigate", url=pages["history"].as_uri())
    browser.until("document.readyState === 'complete'")
    ends = browser.evaluate(
        "[...document.querySelectorAll('thead th')].map((one) => one.getBoundingClientRect().right)"
    )
    assert len(ends) == 5
    assert ends[runs] <= width
