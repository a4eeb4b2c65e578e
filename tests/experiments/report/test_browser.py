"""Test the page in a real browser: it draws its charts, fits the width, follows the theme and sends no requests."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.report.write import write_report
from experiments.results.run_folder import RunFolder
from tests.support.results.handwritten import h200_run, ranks_run, tiny_run, with_predictions
from tests.support.services.chromium import Page, chromium_path

READY = "document.readyState === 'complete' && document.querySelector('[data-figure=memory] svg')"
DRAWN = """[...document.querySelectorAll('[data-figure]')]
  .filter((place) => place.querySelector('svg').checkVisibility()).map((place) => place.dataset.figure)"""
FIGURES_END = """Math.max(...[...document.querySelectorAll('.chart svg, .chart text, .chart rect')]
  .filter((part) => part.checkVisibility()).map((part) => part.getBoundingClientRect().right))"""
LABEL = "getComputedStyle(document.querySelector('.chart .name')).fill"
TEXT = "getComputedStyle(document.body).color"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(chromium_path(), tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def page(browser: Page) -> Page:
    """The browser's tab, which has requested nothing and whose pointer is outside of the page."""
    browser.call("Page.navigate", url="about:blank")
    point_at(browser, 0, 0)
    browser.requests.clear()
    return browser


def show(page: Page, report: Path, width: int, scheme: str, row: str = "baseline") -> None:
    page.set_window(width, scheme)
    page.call("Page.navigate", url=f"{report.as_uri()}#row-{row}")
    page.until(READY)


@pytest.mark.parametrize("made", [h200_run, tiny_run])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_charts_are_drawn_and_nothing_scrolls_sideways(
    page: Page, made: Callable[[Path], RunFolder], width: int, scheme: str, tmp_path: Path
) -> None:
    show(page, write_report(made(tmp_path / "run")).page, width, scheme)
    page.until(f"{DRAWN}.length === 3")
    assert page.evaluate(DRAWN) == ["memory", "memory-baseline", "telemetry-baseline"]
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert 0 < page.evaluate(FIGURES_END) <= width
    assert (brightness(page.evaluate(BACKGROUND)) < brightness(page.evaluate(TEXT))) == (scheme == "dark")
    assert page.evaluate(LABEL) == page.evaluate(TEXT)
    assert page.evaluate("problems") == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("made", [h200_run, tiny_run])
@pytest.mark.parametrize(("width", "scheme"), [(1700, "light"), (390, "dark")])
def test_predictions_are_drawn_and_nothing_scrolls_sideways(
    page: Page, made: Callable[[Path], RunFolder], width: int, scheme: str, tmp_path: Path
) -> None:
    show(page, write_report(with_predictions(made(tmp_path / "run"))).page, width, scheme)
    page.until(f"{DRAWN}.includes('predicted')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert 0 < page.evaluate(FIGURES_END) <= width
    assert page.evaluate("problems") == []


@pytest.mark.parametrize(("width", "scheme"), [(1500, "light"), (390, "dark")])
def test_rows_of_several_ranks_are_drawn_and_nothing_scrolls_sideways(
    page: Page, width: int, scheme: str, tmp_path: Path
) -> None:
    show(page, write_report(ranks_run(tmp_path / "run", gpus_per_node=2)).page, width, scheme, "7b-4gpu-fsdp-b8")
    page.until(f"{DRAWN}.includes('telemetry-7b-4gpu-fsdp-b8')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert 0 < page.evaluate(FIGURES_END) <= width
    assert page.evaluate("problems") == []


def test_a_row_opens_from_a_link_and_draws_its_charts(page: Page, tmp_path: Path) -> None:
    show(page, write_report(h200_run(tmp_path / "run")).page, 1280, "light")
    page.evaluate("document.querySelector('a[href=\"#row-reduced-batch\"]').click()")
    page.until(f"{DRAWN}.includes('telemetry-reduced-batch')")
    assert page.evaluate("document.getElementById('row-reduced-batch').open") is True


def test_charts_are_drawn_again_for_a_dark_theme_and_a_narrow_window(page: Page, tmp_path: Path) -> None:
    show(page, write_report(h200_run(tmp_path / "run")).page, 1280, "light")
    light = page.evaluate(LABEL)
    page.set_window(390, "dark")
    page.until(f"{LABEL} === {TEXT} && {LABEL} !== '{light}'")
    page.until(f"{FIGURES_END} <= 390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("problems") == []


TOOLTIP = "document.querySelector('.tip')"
UNDER = """(() => { const part = document.querySelector('[data-figure=memory] svg rect[class]');
  part.scrollIntoView({block: 'center'}); const box = part.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2, part.dataset.tip ?? part.textContent]; })()"""


def point_at(page: Page, x: float, y: float) -> None:
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_part_of_a_bar_shows_its_value_when_the_pointer_is_on_it(page: Page, width: int, tmp_path: Path) -> None:
    show(page, write_report(h200_run(tmp_path / "run")).page, width, "light")
    x, y, tip = page.evaluate(UNDER)
    assert re.fullmatch(r"parameters [\d.]+ GiB", tip)
    assert page.evaluate(f"{TOOLTIP}.hidden")
    point_at(page, x, y)
    page.until(f"!{TOOLTIP}.hidden")
    assert page.evaluate(f"{TOOLTIP}.textContent") == tip
    assert page.evaluate(f"{TOOLTIP}.getBoundingClientRect().left") >= 0
    assert page.evaluate(f"{TOOLTIP}.getBoundingClientRect().right") <= width
    point_at(page, 1, 1)
    page.until(f"{TOOLTIP}.hidden")


def test_a_curve_shows_its_value_at_the_pointer(page: Page, tmp_path: Path) -> None:
    show(page, write_report(h200_run(tmp_path / "run")).page, 1280, "light")
    page.until(f"{DRAWN}.includes('telemetry-baseline')")
    x, y = page.evaluate("""(() => { const plot = document.querySelector('[data-figure=telemetry-baseline] .plot');
      plot.scrollIntoView({block: 'center'}); const box = plot.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2]; })()""")
    point_at(page, x, y)
    page.until(f"!{TOOLTIP}.hidden")
    assert re.search(r"\d %", page.evaluate(f"{TOOLTIP}.textContent"))


def test_without_javascript_the_browser_shows_the_value_of_a_part_as_a_tooltip(page: Page, tmp_path: Path) -> None:
    report = write_report(h200_run(tmp_path / "run")).page
    report.write_text(re.sub(r"<script>.*?</script>", "", report.read_text(), flags=re.S))
    show(page, report, 1280, "light")
    x, y, tip = page.evaluate(UNDER)
    assert re.fullmatch(r"parameters [\d.]+ GiB", tip)
    hit = f"document.elementFromPoint({x}, {y})"
    assert page.evaluate(f"{hit}.querySelector(':scope > title').textContent") == tip


def brightness(color: str) -> int:
    return sum(map(int, re.findall(r"\d+", color)[:3]))
