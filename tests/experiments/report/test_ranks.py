"""Rows of several ranks in a report."""

import re
from pathlib import Path

import pytest

from experiments.report.content import Report
from experiments.report.pages.charts import report_charts
from experiments.report.ranks import base_row
from experiments.report.words import machine_in_words, size_and_machines_sentence
from experiments.report.write import write_report
from experiments.suites.suite import suite_named
from tests.support.results.handwritten import (
    H200,
    PROCESSOR,
    SEVERAL,
    Page,
    h200_run,
    make_result,
    make_run,
    ranks_run,
    telemetry_csv,
    with_predictions,
)

SUITE = suite_named("multi_gpu_litgpt")


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(ranks_run(tmp_path_factory.mktemp("ranks"))).page.parent


def report_in(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def test_every_rank_is_shown_and_the_first_failed_rank_is_marked(report_folder: Path) -> None:
    rows = {row.row: row for row in report_in(report_folder).rows}
    assert [one.quantities["peak_gib"] for one in rows["7b-4gpu-ddp"].ranks] == list(SEVERAL["7b-4gpu-ddp"][0])
    assert rows["7b-1gpu"].ranks == ()
    failed = rows["7b-4gpu-fsdp-b8"].ranks
    assert [one.failed_first for one in failed] == [False, True, False, False]
    assert [one.ended for one in failed] == ["error", "out of GPU memory", "error", "error"]
    assert "(first)" in Page(report_folder / "report.html").text


def test_scaling_is_the_throughput_relative_to_one_device(report_folder: Path) -> None:
    scaling = {one.row: one for one in report_in(report_folder).scaling}
    assert list(scaling) == ["7b-4gpu-ddp", "7b-4gpu-fsdp", "7b-4gpu-fsdp-b8"]
    ddp = scaling["7b-4gpu-ddp"]
    assert (ddp.base, ddp.speed and ddp.speed.samples_per_s, ddp.base_samples_per_s) == ("7b-1gpu", 22.8, 7.6)
    assert (ddp.speedup, ddp.efficiency) == (pytest.approx(3.0), pytest.approx(0.75))
    assert ddp.speed is not None
    assert (ddp.speed.communication_share, ddp.speed.exposed_communication_share) == (0.31, pytest.approx(0.155))
    failed = scaling["7b-4gpu-fsdp-b8"]
    assert (failed.speedup, failed.efficiency, failed.stated) == (None, None, None)


def test_times_that_the_lab_states_are_scaled_to_its_number_of_samples(report_folder: Path) -> None:
    stated = next(one.stated for one in report_in(report_folder).scaling if one.row == "7b-4gpu-ddp")
    assert stated is not None
    assert (stated.base_s, stated.row_s, stated.base_samples, stated.row_samples) == (212, 163, 1600, 1600)
    assert stated.speedup == pytest.approx(212 / 163)
    assert "212 s → 163 s for 1,600 samples: 1.30 times" in Page(report_folder / "report.html").text


@pytest.mark.parametrize(
    ("suite", "card", "row", "base"),
    [
        ("multi_gpu_litgpt", "a100_80gb", "7b-4gpu-ddp", "7b-1gpu"),
        ("multi_gpu_litgpt", "a100_80gb", "7b-4gpu-fsdp-b8", "7b-1gpu"),
        ("multi_gpu_litgpt", "a100_80gb", "13b-4gpu-zero3-offload", None),
        ("multi_gpu_litgpt", "a100_80gb", "blip2-4gpu-fsdp", "blip2-1gpu"),
        ("multi_gpu_litgpt", "v100_32gb", "1b-4gpu-ddp", "1b-1gpu"),
        ("slurm_hf_trainer", "v100_32gb", "neo-8gpu-fsdp", "neo-1gpu"),
    ],
)
def test_the_most_similar_row_on_one_device_is_found(suite, card, row, base) -> None:
    found = base_row(suite_named(suite), make_run(suite=suite, card=card), suite_named(suite).row(row))
    assert (found and found.id) == base


def test_rows_of_one_rank_have_no_section_on_scaling(tmp_path: Path) -> None:
    page = Page(write_report(h200_run(tmp_path)).page)
    assert report_in(tmp_path).scaling == ()
    assert "scaling" not in page.values("id")


def test_a_row_that_ran_on_fewer_gpus_has_a_note(tmp_path: Path) -> None:
    page = Page(write_report(ranks_run(tmp_path, gpus_per_node=2)).page)
    rows = {row.row: row for row in report_in(tmp_path).rows}
    assert {row: one.fewer_ranks_note for row, one in rows.items()} == {
        "7b-1gpu": "",
        **dict.fromkeys(list(rows)[1:], "2 of 4 ranks"),
    }
    assert {(one.ranks, one.stated_ranks) for one in report_in(tmp_path).scaling} == {(2, 4)}
    assert "3 rows ran on fewer ranks than they state" in page.text
    assert rows["7b-4gpu-ddp"].status == "not evaluated"


def test_a_row_that_ran_on_fewer_gpus_is_not_compared_with_its_prediction(tmp_path: Path) -> None:
    write_report(with_predictions(ranks_run(tmp_path, gpus_per_node=2)))
    predicted = report_in(tmp_path).predicted
    assert predicted is not None
    assert [row.row for row in predicted.rows if row.measured_peak_gib is not None] == ["7b-1gpu"]


def test_the_topology_of_the_gpus_is_shown_once_for_each_run(report_folder: Path) -> None:
    assert Page(report_folder / "report.html").text.count(H200.topology) == 1


def test_the_telemetry_chart_has_one_line_per_gpu(report_folder: Path) -> None:
    drawn = {
        row: report_charts(report_in(report_folder))[f"telemetry-{row}"].content for row in ("7b-1gpu", "7b-4gpu-ddp")
    }
    names = {row: re.findall(r'data-name="([^"]+)"', content) for row, content in drawn.items()}
    each = [f"GPU {number}" for number in range(4)]
    assert names["7b-4gpu-ddp"][:8] == each * 2
    assert "GPU" not in names["7b-4gpu-ddp"]
    assert names["7b-1gpu"].count("GPU") == 2
    colors = re.findall(r'<path class="([^"]+)"', drawn["7b-4gpu-ddp"])[:4]
    assert len(set(colors)) == 4
    assert "nan" not in "".join(drawn.values()).lower()
    assert telemetry_csv(4).splitlines()[0].endswith("gpu3_util_percent,gpu3_memory_gib")


def test_the_number_of_several_gpus_and_the_number_of_ranks_on_a_cpu_are_shown() -> None:
    run = make_run(suite=SUITE.suite)
    one, four = (make_result(run, "7b-4gpu-ddp", device=H200.model_copy(update={"count": n})) for n in (1, 4))
    assert machine_in_words(four).startswith("4 x NVIDIA H200 capped")
    words = "At full size on 4 x NVIDIA H200 capped at 78.6 GiB, emulating a100_80gb."
    assert size_and_machines_sentence(run, {"a": one, "b": four}) == words
    ranks = make_result(run, "7b-4gpu-ddp", device=PROCESSOR.model_copy(update={"count": 4}))
    assert machine_in_words(ranks) == "a CPU (AMD EPYC 7763), 4 ranks"
    assert size_and_machines_sentence(run, {"a": ranks}) == "At full size on a CPU (AMD EPYC 7763)."
