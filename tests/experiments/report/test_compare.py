"""The comparison of two runs."""

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.cli.tables.comparison import comparison_tables
from experiments.errors import InputError
from experiments.report.compare import Comparison, compare
from experiments.results.changes.facts import values_of_rows
from experiments.results.run_folder import RunFolder
from tests.support.results.handwritten import (
    A100,
    EMULATING_GPU_NAME,
    h200_run,
    make_memory,
    make_result,
    make_run,
    make_speed,
    tiny_run,
    write_run,
)
from tests.support.results.semesters import repeat_run


@pytest.fixture
def run_on_a100(tmp_path: Path) -> RunFolder:
    """Write a run of three rows on a real A100, with another library version and commit; the baseline fits."""
    run = make_run(
        run_id="on-a100", rows=("baseline", "reduced-batch", "xxl-qlora"), git_commit="feed" * 10, site="chameleon"
    )
    results = {
        "baseline": make_result(run, "baseline", "fits", A100, memory=make_memory(74.34, 78.0, 14, 14, 28, 15)),
        "reduced-batch": make_result(
            run,
            "reduced-batch",
            "fits",
            A100,
            memory=make_memory(76.72, 78.5, 14, 14, 28, 15),
            speed=make_speed(8.8),
            versions={"torch": "2.12.0", "transformers": "5.17.2", "lightning": "2.6.6"},
        ),
    }
    return write_run(tmp_path / "a100", run, results)


@pytest.fixture
def comparison(tmp_path: Path, run_on_a100: RunFolder) -> Comparison:
    return compare(h200_run(tmp_path / "h200"), run_on_a100)


def text_of(comparison: Comparison) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(comparison_tables(comparison))
    return console.export_text()


def test_every_row_of_both_runs_is_compared(comparison: Comparison) -> None:
    assert [row.row for row in comparison.rows] == list(make_run().rows)
    rows = {row.row: row for row in comparison.rows}
    assert (rows["baseline"].outcome_before, rows["baseline"].outcome_after) == ("oom", "fits")
    assert (rows["xxl"].outcome_before, rows["xxl"].outcome_after) == ("oom", None)
    assert (rows["xxl-qlora"].outcome_before, rows["xxl-qlora"].outcome_after) == (None, None)
    assert rows["baseline"].ran_on_before == EMULATING_GPU_NAME


def test_values_are_shown_with_their_ratio(comparison: Comparison) -> None:
    row = next(row for row in comparison.rows if row.row == "reduced-batch")
    assert row.samples_per_s.ratio == pytest.approx(0.5)
    assert (row.peak_gib.before, row.peak_gib.after, row.peak_gib.ratio) == (76.72, 76.72, 1.0)
    assert row.same_experiment is True
    missing = next(row for row in comparison.rows if row.row == "xxl")
    assert (missing.peak_gib.after, missing.peak_gib.ratio, missing.same_experiment) == (None, None, None)


def test_changed_verdicts_are_listed(comparison: Comparison) -> None:
    changes = {change.id: (change.before, change.after) for change in comparison.verdicts}
    assert changes["baseline/outcome"] == ("pass", "fail")
    assert changes["xxl/outcome"] == ("pass", None)
    assert "reduced-batch/outcome" not in changes


def test_different_options_are_listed(comparison: Comparison) -> None:
    differences = {one.what: (one.before, one.after) for one in comparison.differences}
    assert differences["site"] == ("local", "chameleon")
    assert differences["git commit"][1] == "feed" * 3
    assert differences["device"] == (EMULATING_GPU_NAME, "NVIDIA A100 80GB PCIe")
    assert differences["torch"] == ("2.11.0+cu130", "2.11.0+cu130, 2.12.0")
    assert not {"card", "size", "length", "transformers"} & set(differences)


def test_rows_with_different_settings_are_not_compared(tmp_path: Path) -> None:
    rows = compare(h200_run(tmp_path / "a"), tiny_run(tmp_path / "b")).rows
    assert {row.same_experiment for row in rows if row.outcome_before and row.outcome_after} == {False}


def test_a_run_compared_with_itself_has_no_differences(tmp_path: Path) -> None:
    folder = h200_run(tmp_path)
    comparison = compare(folder, folder)
    assert comparison.differences == comparison.verdicts == ()
    assert "Both runs have the same options and versions" in text_of(comparison)


def test_a_comparison_can_be_written_as_json_and_read_again(comparison: Comparison) -> None:
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_the_table_in_the_terminal_shows_ratios_outcomes_and_devices(comparison: Comparison) -> None:
    text = text_of(comparison)
    assert "17.6 → 8.8 (x 0.50)" in text
    assert "out of GPU memory → fits" in text
    assert EMULATING_GPU_NAME in text
    assert "chameleon" in text


def test_terminal_markup_in_the_names_of_a_run_is_shown_as_text(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", make_run(run_id="[bold]a[/]", host="[/]"), {})
    b = write_run(tmp_path / "b", make_run(run_id="b"), {})
    assert "[bold]a[/]" in text_of(compare(a, b))


def test_runs_of_different_suites_cannot_be_compared(tmp_path: Path) -> None:
    other = write_run(tmp_path / "b", make_run().model_copy(update={"suite": "another", "rows": ()}), {})
    with pytest.raises(InputError, match=re.escape("suite = 'another'")):
        compare(tiny_run(tmp_path / "a"), other)


def test_a_value_counts_as_changed_if_its_difference_exceeds_the_noise_in_the_history(tmp_path: Path) -> None:
    def plant(result: dict[str, Any]) -> None:
        if result["spec"]["row"] == "xxl-sgd":
            result["memory"]["peak_gib"] *= 1.005

    a, same, moved = repeat_run(tmp_path, 0), repeat_run(tmp_path, 1), repeat_run(tmp_path, 2, plant)
    assert compare(a, same).changed == ()
    (found,) = compare(a, moved).changed
    assert found.what == "xxl-sgd: peak memory"
    row = next(row for row in compare(a, moved).rows if row.row == "xxl-sgd")
    assert row.peak_gib.changed
    assert not row.samples_per_s.changed


def test_the_noise_of_a_value_is_computed_from_recorded_runs(tmp_path: Path) -> None:
    def vary(times: float) -> Callable[[dict[str, Any]], None]:
        return lambda result: result["memory"].update(peak_gib=result["memory"]["peak_gib"] * times)

    runs = [repeat_run(tmp_path, week, vary(1 + 0.01 * (-1) ** week)) for week in range(6)]
    recorded = [values_of_rows(run.results()) for run in runs]
    peaks = "peak memory"
    assert any(peaks in one.what for one in compare(runs[0], runs[1]).changed)
    assert not any(peaks in one.what for one in compare(runs[0], runs[1], recorded).changed)


def test_every_possible_cause_of_a_difference_is_named(tmp_path: Path) -> None:
    def other(result: dict[str, Any]) -> None:
        result.update(image="sha256:new", code="feed", data_commit="v2", weights_commit="w2")
        result["device"].update(driver="590.1", cuda="14.0")
        result["versions"]["peft"] = "0.99"

    found = {one.what for one in compare(repeat_run(tmp_path, 0), repeat_run(tmp_path, 1, other)).differences}
    assert {"image", "training code", "data version", "weights version", "driver", "CUDA", "peft"} <= found
