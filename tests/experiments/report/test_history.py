"""A report page on a failure: the last run that passed, the deviation, the end of the log; and the index of runs."""

import re
from pathlib import Path

import pytest

from experiments.report.content import Report
from experiments.report.pages.index import write_index
from experiments.report.write import write_report
from experiments.results.run_folder import VERDICT_FILE, RunFolder, row_path
from experiments.results.schema import LOG_FILE
from tests.support.results.handwritten import (
    SUITE,
    Page,
    h200_run,
    make_result,
    make_run,
    tiny_run,
    worse_run,
    write_run,
)

FAILED = "statement-xxl-sgd-outcome"


def report_of(page: Path) -> Report:
    return Report.model_validate_json(page.with_name("report.json").read_bytes())


def article(page: Path, identifier: str) -> str:
    text = page.read_text()
    begin = text.index(f'id="{identifier}"')
    return text[begin : text.index("</article>", begin)]


def test_a_failed_statement_shows_its_status_in_the_previous_run(tmp_path: Path) -> None:
    write_report(h200_run(tmp_path / "oldest", run_id="oldest", started_at="2026-06-01T09:00:00Z"))
    write_report(h200_run(tmp_path / "older"))
    write_report(h200_run(tmp_path / "other-length", length="as-taught", started_at="2026-07-20T09:00:00Z"))
    write_report(h200_run(tmp_path / "later", run_id="later", started_at="2026-09-01T09:00:00Z"))
    page = write_report(worse_run(tmp_path / "now")).page
    before = report_of(page).previous
    assert before is not None
    assert (before.run_id, before.date) == ("2026-07-01-single-h200", "1 July 2026, 09:00 UTC")
    shown = article(page, FAILED)
    assert re.findall(r'class="pill ([^"]+)"', shown)[-1] == "pass"
    assert "in 2026-07-01-single-h200 of 1 July 2026, 09:00 UTC" in shown


def test_a_first_run_has_no_previous_run(tmp_path: Path) -> None:
    page = write_report(worse_run(tmp_path / "now")).page
    assert report_of(page).previous is None
    assert "<dt>before</dt>" not in article(page, FAILED)


def test_a_failed_value_shows_its_deviation_with_the_unit(tmp_path: Path) -> None:
    page = write_report(h200_run(tmp_path)).page
    missed = [one for one in report_of(page).statements if one.missed]
    assert missed
    for one in missed:
        assert one.status == "fail"
        assert f"<dt>missed by</dt><dd>{one.missed}</dd>" in article(page, f"statement-{one.id.replace('/', '-')}")
    assert any(re.search(r"\d (GiB|samples/s|s|%)", one.missed) for one in missed)


def test_a_row_with_an_error_shows_the_end_of_its_log_as_text(tmp_path: Path) -> None:
    run = make_run(rows=("baseline", "xxl"))
    folder = write_run(
        tmp_path, run, {"baseline": make_result(run, "baseline", "error"), "xxl": make_result(run, "xxl", "oom")}
    )
    for row in run.rows:
        lines = [*(f"line {number}" for number in range(50)), "\x1b[31mfatal error: <Killed>\x1b[0m"]
        (tmp_path / row_path(SUITE, row) / LOG_FILE).write_text("\n".join(lines))
    page = write_report(folder).page
    broke, outcome = report_of(page).rows
    assert broke.log_tail[-1] == "fatal error: <Killed>"
    assert "line 0" not in broke.log_tail
    assert outcome.log_tail == ()
    assert "fatal error: &lt;Killed&gt;</pre>" in page.read_text()


@pytest.fixture
def results_folder(tmp_path: Path) -> Path:
    write_report(h200_run(tmp_path / "h200"))
    write_report(tiny_run(tmp_path / "tiny"))
    write_run(tmp_path / "begun", make_run(run_id="begun", started_at="2026-09-01T09:00:00Z"), {})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "latest").symlink_to("h200")
    return tmp_path


def test_the_index_lists_each_run_once_with_its_counts_and_the_newest_run_first(results_folder: Path) -> None:
    text = write_index(results_folder).read_text()
    rows = re.findall(r"<tr>\n<th scope=\"row\">.*?</tr>", text, flags=re.S)
    runs = [RunFolder(results_folder / name) for name in ("begun", "h200", "tiny")]
    newest = sorted(runs, key=lambda one: (one.read_run().started_at, one.read_run().run_id), reverse=True)
    assert len(rows) == 3
    for row, folder in zip(rows, newest, strict=True):
        assert folder.read_run().run_id in row
        assert folder.read_run().host in row
        link = f'href="{folder.path.name}/report.html"'
        if (folder.path / VERDICT_FILE).is_file():
            counts = report_of(folder.path / "report.html").counts
            for status, count in counts.items():
                cell = row[row.index(f'data-label="{status}"') :].partition("</td>")[0]
                assert (f"</span> {count}</span>" in cell) == bool(count)
            assert link in row
        else:
            assert "no report yet" in row
            assert "href" not in row


def test_links_of_the_index_lead_to_existing_pages(results_folder: Path) -> None:
    links = {link for link in Page(write_index(results_folder)).values("href") if not link.startswith("data:")}
    assert len(links) == 2
    assert {link for link in links if not (results_folder / link).is_file()} == set()
