"""Predictions in the report: at full size next to tiny models, and next to measurements on a GPU."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from experiments.report.content import Report, Statement
from experiments.report.predicted import PredictedReport
from experiments.report.words import format_percent, predicted_headline
from experiments.report.write import write_report
from experiments.results.memory_parts import PARTS_AT_PEAK
from experiments.results.verdicts import Evaluation
from tests.support.results.handwritten import MEASURED, Page, h200_run, tiny_run, with_predictions
from tests.support.runners.fake_predictions import step_time


@pytest.fixture(scope="module")
def tiny_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(with_predictions(tiny_run(tmp_path_factory.mktemp("tiny")))).page.parent


def statements(folder: Path) -> dict[str, Statement]:
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    return {one.id: one for one in report.statements}


@pytest.fixture(scope="module")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(with_predictions(h200_run(tmp_path_factory.mktemp("full")))).page.parent


def predicted_rows(folder: Path) -> PredictedReport:
    found = Report.model_validate_json((folder / "report.json").read_bytes()).predicted
    assert found is not None
    return found


def figure(folder: Path) -> str:
    found = re.search(r'data-figure="predicted">.*?</div>', (folder / "report.html").read_text(), re.S)
    assert found is not None
    return found[0]


def test_a_report_without_predictions_has_no_section_about_predictions(tmp_path: Path) -> None:
    page = Page(write_report(tiny_run(tmp_path)).page)
    assert "predicted" not in page.values("id")
    assert Report.model_validate_json((tmp_path / "report.json").read_bytes()).predicted is None


def test_a_miniature_is_shown_with_the_prediction_at_full_size(tiny_report: Path) -> None:
    page, found = Page(tiny_report / "report.html"), predicted_rows(tiny_report)
    assert "Predicted at full size" in page.text
    assert page.text.count(found.headline[1:]) == 2
    status = {one.id: (one.predicted_status, one.measured_status) for one in found.statements}
    assert status["baseline/outcome"] == ("pass", "not evaluated")
    assert status["claim/gradients-follow-the-parameters"][0] == "pass"
    assert status["claim/gradients-follow-the-parameters"][1] != "not evaluated"
    assert "claim/bf16-is-much-faster" not in status
    assert len(found.statements) + found.not_evaluated == len(
        Report.model_validate_json((tiny_report / "report.json").read_bytes()).statements
    )


def test_the_report_of_a_miniature_lists_every_predicted_verdict(tiny_report: Path) -> None:
    best = statements(tiny_report)
    assert {one.id: one.predicted_status for one in predicted_rows(tiny_report).statements} == {
        id: one.status for id, one in best.items() if one.grade == "predicted"
    }
    assert best["baseline/outcome"].ran_on == ()
    case = ET.parse(tiny_report / "junit.xml").find(".//testcase[@name='baseline/outcome']")
    assert case.find("properties/property[@name='grade']").get("value") == "predicted"
    assert "grade: predicted" in case.findtext("system-out")
    assert Evaluation.model_validate_json((tiny_report / "verdict.json").read_bytes()).count("pass") > 20


def test_headline_and_page_show_whether_statements_were_predicted_or_measured(
    tiny_report: Path, full_report: Path
) -> None:
    assert ", predicted; " in Page(tiny_report / "report.html").text or " predicted" in headline_of(tiny_report)
    assert re.search(r"\d+ measured on a GPU that emulates the card, \d+ predicted", headline_of(full_report))
    assert ET.parse(full_report / "junit.xml").find(".//property[@name='headline']").get("value") == headline_of(
        full_report
    )


def headline_of(folder: Path) -> str:
    return Report.model_validate_json((folder / "report.json").read_bytes()).headline


def test_a_measurement_is_not_replaced_by_a_prediction(full_report: Path) -> None:
    best = statements(full_report)
    assert best["xxl-activation-checkpointing/outcome"].grade == "emulated"
    assert best["xxl-activation-checkpointing/outcome"].status == "fail"
    assert best["xxl-qlora/outcome"].grade == "predicted"


def test_a_prediction_that_contradicts_a_measurement_is_shown(tmp_path: Path) -> None:
    folder = write_report(with_predictions(h200_run(tmp_path), factor=0.1)).page.parent
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    found = {one.id: one for one in report.contradictions}
    assert (found["baseline/outcome"].measured.status, found["baseline/outcome"].predicted.status) == ("pass", "fail")
    page = Page(folder / "report.html")
    assert "Predictions that contradict a measurement" in page.text
    assert f"{len(found)} predictions contradict a measurement" in report.headline
    assert "contradictions" in page.values("id")
    assert "contradictions" not in Page(write_report(h200_run(tmp_path / "other")).page).values("id")


def test_the_headline_counts_statements_whose_predicted_verdict_is_pass(tiny_report: Path) -> None:
    found = predicted_rows(tiny_report)
    passed = sum(one.predicted_status == "pass" for one in found.statements)
    assert 0 < passed < len(found.statements)
    assert found.headline.startswith(f"{passed} of {len(found.statements)} statements")
    assert found.headline.endswith(f"are predicted to pass; {found.not_evaluated} cannot be predicted.")


def test_predicted_failures_come_first_and_outcomes_that_differ_from_the_lab_s_are_marked(tiny_report: Path) -> None:
    order = [one.predicted_status for one in predicted_rows(tiny_report).statements]
    assert order == sorted(order)  # 'fail', 'pass'
    differing = [row.row for row in predicted_rows(tiny_report).rows if row.agrees is False]
    assert differing == ["xxl-activation-checkpointing"]
    assert Page(tiny_report / "report.html").source.count("</span> differs</span>") == 1


def test_measurements_of_a_miniature_are_not_compared_with_predictions_at_full_size(tiny_report: Path) -> None:
    assert predicted_rows(tiny_report).errors == ()
    assert all(row.measured_peak_gib is None and row.peak_error is None for row in predicted_rows(tiny_report).rows)


def test_measurements_on_a_gpu_are_shown_next_to_predictions(full_report: Path) -> None:
    rows = {row.row: row for row in predicted_rows(full_report).rows}
    ended = [row for row, (outcome, *_) in MEASURED.items() if outcome == "fits"]
    assert [row for row, one in rows.items() if one.peak_error is not None] == ended
    assert rows["xxl-sgd"].measured_peak_gib == 64.64
    assert rows["xxl-sgd"].peak_error == pytest.approx(0.01)
    assert rows["xxl-sgd"].reserved_error == pytest.approx((64.64 * 1.01 + 1) / 65.60 - 1)
    assert rows["xxl-sgd"].rule_of_thumb_error == pytest.approx(70 / 64.64 - 1)
    assert "Predicted and measured" in Page(full_report / "report.html").text


def test_median_and_largest_errors_are_shown(full_report: Path) -> None:
    peak, reserved, thumb = predicted_rows(full_report).errors
    assert (peak.what, reserved.what, thumb.what) == ("predicted peak", "predicted reserved memory", "rule of thumb")
    assert peak.median == pytest.approx(0.01)
    errors = sorted(
        abs(row.rule_of_thumb_error) for row in predicted_rows(full_report).rows if row.rule_of_thumb_error is not None
    )
    assert thumb.worst == errors[-1]
    assert thumb.rows == len(errors) == 8
    assert thumb.median == pytest.approx((errors[3] + errors[4]) / 2)
    text = Page(full_report / "report.html").text
    assert "the predicted peak has a median error of 1.0 % and a largest error of 1.0 %" in text


def test_the_chart_shows_the_predicted_peak_and_the_card_s_limit(tiny_report: Path, full_report: Path) -> None:
    drawn = figure(tiny_report)
    parts = ["parameters", "gradients", "optimizer", "activations", "buffers of libraries"]
    assert re.findall(r"<li.*?></i>(.*?)</li>", drawn) == [*parts, "reserved by the allocator"]
    shown = dict(zip(re.findall(r'class="name">(.*?)<', drawn), drawn.split('class="name">')[1:], strict=True))
    for row in predicted_rows(tiny_report).rows:
        sizes = re.findall(rf"<title>(?:{'|'.join(parts)}) ([\d.]+) GiB</title>", shown[row.row])
        drawn_parts = [max(0.0, getattr(row.prediction.at_peak, part.field)) for part in PARTS_AT_PEAK]
        assert sum(map(float, sizes)) == pytest.approx(sum(drawn_parts), abs=0.02)
    assert "a100_80gb: 78.60 GiB usable" in drawn
    measured = figure(full_report).split('class="name">')[1:3]
    assert ["measured peak" in bar for bar in measured] == [False, True]
    assert "measured peak 76.72 GiB" in measured[1]


def test_the_estimate_by_a_rule_of_thumb_is_shown_with_its_error(tiny_report: Path, full_report: Path) -> None:
    for folder in (tiny_report, full_report):
        text = Page(folder / "report.html").text
        assert "Rule of thumb" in text
        assert "it ignores batch size, text length, optimizer state" in text


def test_links_of_predicted_statements_have_targets_in_the_page(tiny_report: Path) -> None:
    page = Page(tiny_report / "report.html")
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(page.values("id"))


def test_the_headline_says_whether_all_or_none_of_the_statements_have_a_predicted_verdict(full_report: Path) -> None:
    class Counts:
        def __init__(self, **counts: int) -> None:
            self.counts = counts

        def count(self, status: str) -> int:
            return self.counts.get(status.replace(" ", "_"), 0)

    assert predicted_headline(Counts(**{"pass": 3})) == (  # type: ignore[arg-type]
        "All 3 statements about memory are predicted to pass."
    )
    nothing = predicted_headline(Counts(not_evaluated=3))  # type: ignore[arg-type]
    assert nothing == "No statement is about memory, so none can be predicted."


@pytest.mark.parametrize(("error", "words"), [(0.0042, "+0.4 %"), (-0.12, "-12.0 %"), (-0.0001, "0.0 %")])
def test_an_error_that_rounds_to_zero_has_no_sign(error: float, words: str) -> None:
    assert format_percent(error) == words


def test_each_row_that_fits_shows_the_parts_of_its_step_time(tmp_path: Path) -> None:
    folder = with_predictions(tiny_run(tmp_path))
    device_s = {"matrix products": 1.0, "copies": 0.4, "indexing": 0.2}
    time = step_time(2.0).model_copy(update={"error_share": 0.15, "host_s": 2.0, "device_s": device_s})
    folder.write_predictions([one.model_copy(update={"time": time}) for one in folder.predictions()])
    chart = re.search(r'data-figure="step">.*?</div>', write_report(folder).page.read_text(), re.S)
    assert chart is not None
    fitting = [one.spec.row for one in folder.predictions() if one.likely_outcome == "fits"]
    assert re.findall(r'<tspan class="name">(.*?)</tspan>', chart[0]) == fitting
    assert chart[0].count("limited by the host") == chart[0].count("2 s ±15 %") == len(fitting)
    for part in ("matrix products 50 %", "kernels limited by memory bandwidth 30 %", "other GPUs 20 %", "host 100 %"):
        assert chart[0].count(f"{part} of the step") == len(fitting), part
