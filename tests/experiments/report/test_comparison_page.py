"""The HTML page that compares two runs."""

import re
from pathlib import Path

import pytest

from experiments.errors import InputError
from experiments.report.compare import compare
from experiments.report.pages.comparison import differences, row_changes, write_comparison
from experiments.results.run_folder import RunFolder
from tests.support.results.evidence import EVIDENCE
from tests.support.results.handwritten import h200_run, tiny_run, worse_run


@pytest.fixture
def comparison(tmp_path):
    return compare(h200_run(tmp_path / "a"), worse_run(tmp_path / "b"))


def page_text(path: Path, comparison) -> str:
    write_comparison(path, comparison)
    return path.read_text()


def test_differences_are_grouped_by_kind(comparison):
    found = {kind: {one.what for one in own} for kind, own in differences(comparison).items()}
    assert found == {
        "Settings": set(),
        "Packages": {"torch"},
        "Card, driver and machine": {"driver"},
        "Code": {"git commit"},
    }


def test_a_setting_that_differs_is_named_with_its_row():
    a, b = (RunFolder(EVIDENCE / f"single_gpu_blip2-{card}-full-verdict") for card in ("a100_80gb", "h100_94gb"))
    found = {one.what: (one.before, one.after) for one in differences(compare(a, b))["Settings"]}
    assert found["baseline: batch_size"] == ("32", "64")


def test_a_measured_value_is_shown_for_both_runs_with_its_unit_and_its_change(comparison):
    row = next(row for row in comparison.rows if row.row == "reduced-batch")
    speed = next(one for one in row_changes(row) if one.name == "throughput")
    assert speed == ("throughput", "17.6", "8.8", "samples/s", "-50.0 %", "bad")


def test_rows_are_ordered_worst_first_in_table_and_chart(comparison, tmp_path):
    text = page_text(tmp_path / "page.html", comparison)
    assert re.findall(r'<tr id="row-([^"]+)"', text)[:2] == ["xxl-sgd", "reduced-batch"]
    assert re.findall(r'<tspan class="name">([^<]+)<', text)[0] == "xxl-sgd"


def test_a_changed_verdict_is_marked_with_both_statuses(comparison, tmp_path):
    text = page_text(tmp_path / "page.html", comparison)
    section = text[text.index('id="verdicts"') : text.index('id="rows"')]
    article = next(one for one in section.split("<article")[1:] if 'href="#row-xxl-sgd"' in one)
    assert re.findall(r'class="pill ([^"]+)"', article) == ["pass", "fail"]
    assert "fits → out of GPU memory" in text


def test_a_tiny_and_a_full_size_run_are_not_compared_in_numbers(tmp_path):
    text = page_text(tmp_path / "page.html", compare(h200_run(tmp_path / "a"), tiny_run(tmp_path / "b")))
    assert "cannot be compared with full size" in text
    assert "<svg" not in text


def test_the_page_needs_no_javascript_and_escapes_text_of_runs(tmp_path):
    folder = h200_run(tmp_path / "a", run_id="<script>alert(1)</script>")
    text = page_text(tmp_path / "page.html", compare(folder, worse_run(tmp_path / "b")))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_comparison_page_that_cannot_be_written_is_named(comparison, tmp_path):
    with pytest.raises(InputError, match=re.escape(f"--page {tmp_path}: cannot be written")):
        write_comparison(tmp_path, comparison)
