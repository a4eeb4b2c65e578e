"""The files that write_report writes into a run's folder."""

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from experiments.errors import InputError
from experiments.report.content import Report
from experiments.report.junit import render_junit
from experiments.report.pages.charts import report_charts
from experiments.report.write import reevaluate, write_report
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Memory, Result, StageTimes
from experiments.results.verdicts import Evaluation, Status
from tests.support.results.handwritten import (
    EMULATING_GPU_NAME,
    H200,
    SUITE,
    Page,
    h200_run,
    make_failure,
    make_memory,
    make_result,
    make_run,
    tiny_run,
    write_run,
)


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(h200_run(tmp_path_factory.mktemp("h200"))).page.parent


def handwritten_run(path: Path, results: dict[str, Result], run: Run) -> Page:
    return Page(write_report(write_run(path, run, results, telemetry=False)).page)


def test_the_verdicts_are_written_as_they_were_evaluated(report_folder: Path) -> None:
    evaluation = Evaluation.model_validate_json((report_folder / "verdict.json").read_bytes())
    report = Report.model_validate_json((report_folder / "report.json").read_bytes())
    assert [one.id for one in report.statements] == [one.id for one in evaluation.verdicts]
    assert {status: evaluation.count(status) for status in report.counts} == report.counts
    status = {one.id: one.status for one in report.statements}
    assert status["baseline/outcome"] == "pass"
    assert status["xxl-activation-checkpointing/outcome"] == "fail"
    assert status["xxl-cpu-offload/outcome"] == "error"
    assert status["xxl-lora/outcome"] == status["xxl-qlora/outcome"] == "not evaluated"
    assert report.headline in Page(report_folder / "report.html").text


def test_report_json_has_the_table_of_rows(report_folder: Path) -> None:
    rows = {row["row"]: row for row in json.loads((report_folder / "report.json").read_text())["rows"]}
    assert list(rows) == list(make_run().rows)
    assert rows["baseline"]["expected"] == rows["baseline"]["measured"] == "out of GPU memory"
    assert rows["reduced-batch"]["quantities"]["peak_gib"] == 76.72
    assert rows["reduced-batch"]["ran_on"] == EMULATING_GPU_NAME
    assert rows["xxl-qlora"]["measured"] == ""
    assert rows["xxl-qlora"]["settings"]["batch_size"] == 64


def test_a_report_begins_with_the_headline_and_has_its_sections_in_order(report_folder: Path) -> None:
    tags = Page(report_folder / "report.html").tags
    marks = [attrs.get("id", tag) for tag, attrs in tags if tag in ("h1", "section")]
    assert marks == ["h1", "statements", "rows", "memory", "each-row", "provenance"]


def test_every_result_shows_that_a_larger_gpu_emulated_the_card(report_folder: Path) -> None:
    text = Page(report_folder / "report.html").text
    measured = Report.model_validate_json((report_folder / "report.json").read_bytes())
    shown = [one for one in measured.statements if one.value]
    rows = [row for row in measured.rows if row.result]
    assert text.count(EMULATING_GPU_NAME) >= len(shown) + 2 * len(rows)


def test_links_have_existing_targets_inside_the_folder(report_folder: Path) -> None:
    page = Page(report_folder / "report.html")
    files = [link for link in page.values("href") if not link.startswith(("#", "data:"))]
    assert f"{SUITE}/xxl-activation-checkpointing/notebook.html" in files
    assert f"{SUITE}/xxl-activation-checkpointing/log.txt" in files
    assert [link for link in files if not (report_folder / link).is_file()] == []
    anchors = {link[1:] for link in page.values("href") if link.startswith("#")}
    assert anchors <= set(page.values("id"))


def test_a_failed_statement_links_to_its_rows_notebooks_and_logs(report_folder: Path) -> None:
    source = (report_folder / "report.html").read_text()
    report = Report.model_validate_json((report_folder / "report.json").read_bytes())
    failed = [one for one in report.statements if one.status == "fail"]
    assert {one.kind for one in failed} == {"outcome", "claim"}
    for one in failed:
        article = re.search(rf'id="statement-{one.id.replace("/", "-")}".*?</article>', source, re.S)
        for row in one.rows:
            for target in (f"#row-{row}", f"{SUITE}/{row}/notebook.html", f"{SUITE}/{row}/log.txt"):
                assert f'href="{target}"' in article[0]


def test_the_page_loads_nothing_from_a_network(report_folder: Path) -> None:
    page = Page(report_folder / "report.html")
    assert [attrs for tag, attrs in page.tags if tag in ("script", "img", "iframe") and "src" in attrs] == []
    assert [link for link in page.values("href") if "//" in link] == []
    assert "url(" not in re.search(r"<style>(.*?)</style>", page.source, re.S)[1]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_chart_is_in_the_page_without_javascript(report_folder: Path) -> None:
    page = Page(report_folder / "report.html")
    report = Report.model_validate_json((report_folder / "report.json").read_bytes())
    assert sorted(report_charts(report)) == sorted(page.values("data-figure"))
    assert {"memory", "memory-baseline", "telemetry-baseline"} <= set(page.values("data-figure"))
    drawn = re.findall(
        r'<div data-figure="[^"]+"><div class="chart">.*?<svg role="img" aria-label="[^"]+"', page.source, re.S
    )
    assert len(drawn) == len(page.values("data-figure"))


def test_the_chart_shows_the_card_s_usable_memory_except_for_a_miniature(report_folder: Path, tmp_path: Path) -> None:
    assert "a100_80gb: 78.60 GiB usable" in (report_folder / "report.html").read_text()
    tiny = Page(write_report(tiny_run(tmp_path)).page)
    assert "GiB usable" not in tiny.source
    assert "This is a miniature on a CPU" in tiny.text


def test_the_chart_shows_the_parts_of_the_peak(report_folder: Path) -> None:
    memory = re.search(r'data-figure="memory">.*?(?=data-figure)', (report_folder / "report.html").read_text(), re.S)[0]
    legend = re.findall(r"<li.*?></i>(.*?)</li>", memory)
    parts = [
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "peak memory that exists only between two points of the step",
    ]
    assert legend == [*parts, "reserved by the allocator"]
    baseline = memory[memory.index(">baseline<") : memory.index(">reduced-batch<")]
    sizes = dict(re.findall(r"<title>(.*?) ([\d.]+) GiB</title>", baseline))
    assert sizes["parameters"] == "14.43"
    assert sizes.pop("reserved by the allocator") == "78.6"
    assert sum(map(float, sizes.values())) == pytest.approx(74.34, abs=0.02)


def test_the_junit_file_has_one_test_case_per_verdict(report_folder: Path) -> None:
    report = Report.model_validate_json((report_folder / "report.json").read_bytes())
    suite = ET.parse(report_folder / "junit.xml").getroot().find("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == [one.id for one in report.statements]
    elements = {"pass": None, "fail": "failure", "error": "error", "not evaluated": "skipped"}
    for one in report.statements:
        assert cases[one.id].find("properties/property[@name='grade']") is not None or one.grade is None
        found = [child for child in cases[one.id] if child.tag not in ("system-out", "properties")]
        assert [child.tag for child in found] == ([elements[one.status]] if elements[one.status] else [])
        assert all(child.get("message") for child in found)
    attributes: dict[str, Status] = {"failures": "fail", "errors": "error", "skipped": "not evaluated"}
    for attribute, status in attributes.items():
        assert suite.get(attribute) == str(report.counts[status])
    assert suite.get("tests") == str(len(report.statements))
    assert EMULATING_GPU_NAME in cases["claim/accumulation-keeps-memory"].findtext("system-out")


def test_the_junit_file_reports_a_known_failure_as_skipped(report_folder: Path) -> None:
    report = Report.model_validate_json((report_folder / "report.json").read_bytes())
    failed = next(one for one in report.statements if one.status == "fail")
    known = failed.model_copy(update={"known_failure": "its weights alone"})
    statements = tuple(known if one is failed else one for one in report.statements)
    suites = [
        ET.fromstring(render_junit(each)).find("testsuite")
        for each in (report, report.model_copy(update={"statements": statements}))
    ]
    (before, after) = [[int(suite.get(name)) for name in ("failures", "skipped")] for suite in suites]
    assert after == [before[0] - 1, before[1] + 1]
    case = suites[1].find(f"testcase[@name='{failed.id}']")
    assert case.find("failure") is None
    assert case.find("skipped").get("message")


def test_checksums_cover_every_file_and_can_be_verified(report_folder: Path) -> None:
    named = {line.split("  ", 1)[1] for line in (report_folder / "SHA256SUMS").read_text().splitlines()}
    files = {str(path.relative_to(report_folder)) for path in report_folder.rglob("*") if path.is_file()}
    assert named == files - {"SHA256SUMS"}
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=report_folder, check=False).returncode == 0


def test_a_changed_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    folder = write_report(tiny_run(tmp_path)).page.parent
    (folder / SUITE / "xxl" / "log.txt").write_text("something else")
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert check.returncode == 1
    assert f"{SUITE}/xxl/log.txt: FAILED" in check.stdout


def test_a_report_written_twice_is_identical(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path)
    write_report(folder)
    before = (tmp_path / "SHA256SUMS").read_text()
    write_report(folder)
    assert (tmp_path / "SHA256SUMS").read_text() == before


def test_text_in_stored_files_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script> & <b>\x1b[31m"
    run = make_run(rows=("reduced-batch",), command=evil, host=evil)
    device = H200.model_copy(update={"name": evil, "topology": evil})
    result = make_result(
        run,
        "reduced-batch",
        "oom",
        device,
        reason=evil,
        failure=make_failure(evil),
        memory=make_memory(10, 11, 1, 1, 2, 3),
        versions={evil: evil},
    )
    page = handwritten_run(tmp_path, {"reduced-batch": result}, run)
    assert "<script>alert" not in page.source
    assert "alert(1)" in page.text
    case = ET.parse(tmp_path / "junit.xml").getroot().find(".//failure")
    assert case.get("message") == evil.replace("\x1b", "")


def test_a_run_without_results_has_a_report(tmp_path: Path) -> None:
    page = handwritten_run(tmp_path, {}, make_run())
    assert "None of the" in page.text
    assert "No row has a result yet" in page.text
    assert "No row has measured memory." in page.text
    assert page.values("data-figure") == []


@pytest.mark.parametrize("outcome", ["fits", "oom", "host_oom", "error", "timeout", "rejected"])
@pytest.mark.parametrize("memory", [Memory(), Memory(peak_gib=70.0)])
def test_a_row_with_few_measurements_has_a_report(tmp_path: Path, outcome: str, memory: Memory) -> None:
    run = make_run(rows=("xxl", "xxl-sgd"))
    page = handwritten_run(tmp_path, {"xxl": make_result(run, "xxl", outcome, memory=memory)}, run)
    assert "not run" in page.text
    assert ("memory" in page.values("data-figure")) == (memory.peak_gib is not None)


def test_the_details_of_a_row_show_the_times_of_its_stages(tmp_path: Path) -> None:
    run = make_run(rows=("baseline", "xxl"))
    times = StageTimes(start_s=0.2, build_s=1.5, train_s=9.0, end_s=0.8)
    results = {"baseline": make_result(run, "baseline", times=times), "xxl": make_result(run, "xxl")}
    page = handwritten_run(tmp_path, results, run)
    assert page.text.count("stages, s") == 1
    assert "0.2 start, 1.5 build, 9.0 train, 0.8 end" in page.text


def test_rows_that_did_not_run_have_no_links(tmp_path: Path) -> None:
    page = handwritten_run(tmp_path, {}, make_run(rows=("xxl",)))
    assert not [link for link in page.values("href") if "notebook" in link or "log.txt" in link]


def test_a_folder_without_a_run_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run's folder"):
        write_report(RunFolder(tmp_path))


def test_reevaluation_agrees_with_the_written_verdicts(tmp_path: Path) -> None:
    write_report(tiny_run(tmp_path / "a"))
    h200_run(tmp_path / "b")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept, fresh = reevaluate(tmp_path)
    assert (kept.folder, fresh.folder) == (tmp_path / "a", tmp_path / "b")
    assert kept.changes == fresh.changes == ()
    assert kept.evaluation == Evaluation.model_validate_json((tmp_path / "a" / "verdict.json").read_bytes())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_reevaluation_names_what_changed(tmp_path: Path) -> None:
    write_report(tiny_run(tmp_path))
    verdicts = tmp_path / "verdict.json"
    verdicts.write_text(verdicts.read_text().replace('"status": "pass"', '"status": "fail"', 1))
    (change,) = reevaluate(tmp_path)[0].changes
    assert (change.before, change.after) == ("fail", "pass")


def test_reevaluation_needs_a_run_and_readable_verdicts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("no run's folder here")):
        reevaluate(tmp_path)
    tiny_run(tmp_path)
    (tmp_path / "verdict.json").write_text("{}")
    with pytest.raises(InputError, match=re.escape("not verdicts of schema version 3")):
        reevaluate(tmp_path)
