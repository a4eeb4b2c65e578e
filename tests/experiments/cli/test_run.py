"""`testbed run`: output, exit codes, and mistakes in its options and in labs."""

import json
import shutil
from types import SimpleNamespace

import pytest

from experiments.results.schema import Outcome
from experiments.suites import suite
from experiments.suites.models import models
from experiments.suites.yaml_schema import read_yaml
from provision.hardware import local
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_runner import SLURM, SUITE, FakeRunner


@pytest.fixture
def edited_labs(tmp_path, monkeypatch):
    """A copy of the labs folder in which one text of the suite is replaced by another."""
    folder = tmp_path / "recipes"
    shutil.copytree(suite.LABS, folder)

    def forget() -> None:
        for kept in (suite.suite_named, models, read_yaml):
            kept.cache_clear()

    def change(old: str, new: str) -> None:
        forget()
        path = folder / f"{SUITE}.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    monkeypatch.setattr(suite, "LABS", folder)
    yield change
    forget()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SUITE, "--row", "nope"], f"suite {SUITE}: unknown row 'nope'; allowed: baseline, reduced-batch"),
        ([SUITE, "--versions", "as-taught"], "--versions as-taught: allowed on leased machines (--site chameleon"),
        (["nope"], "unknown suite 'nope'; allowed: beyond, ladder, multi_gpu_litgpt, single_gpu_blip2"),
        ([SUITE, "--card", "nope"], f"suite {SUITE}: unknown card 'nope'; allowed: a100_80gb, h100_94gb"),
        ([SUITE, "--site", "nope"], "unknown site 'nope'; allowed: local"),
        ([SUITE, "--size", "full"], "no GPU: full size needs one; size tiny runs anywhere"),
        (
            [SUITE, "--weights", "pretrained"],
            "weights pretrained: a tiny model has no pretrained weights; allowed: random",
        ),
        ([SUITE, "--data", "/nope"], "--data /nope: no such folder or archive"),
        ([SUITE, "--data", "https://data.test/set.zip"], "a URL needs --data-sha256"),
        ([SUITE, "--run-id", "../nope"], "--run-id ../nope: allowed: letters, digits"),
        ([SUITE, "--run-id", "latest"], "--run-id latest: allowed: letters, digits"),
        ([SUITE, SLURM, "--run-id", "mine"], "--run-id mine: allowed with one suite only"),
        ([SUITE, SLURM, "--row", "nope"], f"--row nope: none of the suites {SUITE}, {SLURM} has this row"),
        ([SUITE, SLURM, "--card", "a100_80gb"], f"suite {SLURM}: unknown card 'a100_80gb'; allowed: v100_32gb"),
        ([SUITE, "--gpus-per-node", "0"], "--gpus-per-node 0: allowed: 1 or more"),
        (
            [SLURM, "--gpus-per-node", "1"],
            "--gpus-per-node 1: row 'neo-4gpu-ddp' of suite slurm_hf_trainer would have 1 rank, but ddp needs more;"
            " allowed: 2 or more",
        ),
        ([SLURM, "--gpus-per-node", "3"], "global_batch_size = 8: cannot be divided by accumulate 1 on 3 devices"),
    ],
)
def test_a_user_error_is_reported_in_one_line_with_exit_code_2(testbed, tmp_path, arguments, message):
    code, out, err = testbed("run", *arguments, "--results", tmp_path / "results")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 32", "bacth_size: 32", "row 'baseline' on a100_80gb: unknown key 'bacth_size'; allowed: "),
        ("precision: 32-true", "percision: 32-true", "row 'baseline' on a100_80gb: unknown key 'percision'; allowed: "),
        ("batch_size: 32", "batch_size: -1", "row 'baseline' on a100_80gb: batch_size = -1: "),
        ("batch_size: 32", "global_batch_size: 30, accumulate: 4", "global_batch_size = 30: cannot be divided by"),
        ("optimizer: adamw", "optimizer: adam", "optimizer = 'adam'"),
    ],
)
def test_an_invalid_suite_is_rejected_with_the_place_of_its_error(testbed, edited_labs, tmp_path, old, new, message):
    edited_labs(old, new)
    code, _, err = testbed("run", SUITE, "--results", tmp_path / "results")
    assert code == 2
    assert err.startswith(f"testbed: {SUITE}.yaml: ")
    assert message in err
    assert err.count("\n") == 1


def test_results_of_another_recipe_version_are_rejected_with_a_fix(testbed, edited_labs, finished_folder):
    edited_labs("\nversion: 1\n", "\nversion: 2\n")
    code, _, err = testbed("run", SUITE, "--results", finished_folder.parent)
    assert code == 2
    assert "has results of version 1 of suite single_gpu_blip2, which is now version 2; choose another --run-id" in err


def test_a_device_smaller_than_the_card_is_rejected(testbed, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "this_machine", lambda: sample_rows.node(sample_rows.T4))
    code, _, err = testbed("run", SUITE, "--size", "full", "--results", tmp_path)
    assert (code, err) == (2, "testbed: device NVIDIA T4 has 14.6 GiB, a100_80gb needs 79.2 GiB\n")


def test_a_run_without_disk_space_is_rejected(testbed, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    code, _, err = testbed("run", SUITE, "--results", tmp_path)
    assert code == 2
    assert "not enough disk space" in err


def test_an_archive_with_a_wrong_checksum_is_rejected(testbed, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"")
    code, _, err = testbed("run", SUITE, "--data", tmp_path / "set.zip", "--data-sha256", "ab")
    assert code == 2
    assert "its SHA-256 is e3b0c442" in err


def test_a_run_shows_verdicts_and_where_the_report_is(testbed, tmp_path):
    code, out, err = testbed("run", SUITE, "--row", "reduced-batch", "--results", tmp_path)
    assert (code, err) == (0, "")
    assert f"report: {tmp_path}/{SUITE}-a100_80gb-tiny-verdict/report.html" in out
    assert "not evaluated" in out


def test_a_run_of_several_suites_ends_with_their_counts_and_reports(testbed, tmp_path):
    _, out, _ = testbed("run", SUITE, SLURM, "--row", "reduced-batch", "--row", "neo-1gpu", "--results", tmp_path)
    folders = [f"{SUITE}-a100_80gb-tiny-verdict", f"{SLURM}-v100_32gb-tiny-verdict"]
    counts = out[out.rindex("suite ") :]
    cells = {line.split()[0]: line.split()[1:] for line in counts.splitlines() if len(line.split()) == 5}
    evaluated = [[int(cell) for cell in cells[suite]] for suite in (SUITE, SLURM)]
    assert [int(cell) for cell in cells["all"]] == [sum(column) for column in zip(*evaluated, strict=True)]
    assert [line for line in counts.splitlines() if line.startswith("report: ")] == [
        f"report: {tmp_path}/{folder}/report.html" for folder in folders
    ]


def test_the_exit_code_is_that_of_the_worst_of_several_suites(testbed, monkeypatch, tmp_path):
    outcomes: dict[str, Outcome] = {SUITE: "fits", SLURM: "error"}
    made = fake_worker.fake_result
    monkeypatch.setattr(fake_worker, "fake_result", lambda spec, _: made(spec, outcomes[spec.suite]))
    rows = ("--row", "reduced-batch", "--row", "neo-1gpu")
    assert testbed("run", SUITE, SLURM, *rows, "--results", tmp_path)[0] == 3
    assert testbed("run", SLURM, SUITE, *rows, "--results", tmp_path)[0] == 3


def test_errors_are_shown_last_with_their_reason(testbed, monkeypatch, tmp_path):
    made = fake_worker.fake_result
    monkeypatch.setattr(fake_worker, "fake_result", lambda spec, _: made(spec, "error"))
    _, out, _ = testbed(
        "run", SUITE, SLURM, "--row", "reduced-batch", "--row", "neo-1gpu", "--results", tmp_path, "--no-predict"
    )
    output = " ".join(out[out.index("report: ") :].split())
    assert f"{SLURM}: error: One GPU: fits (fake worker: error)" in output


def test_a_run_with_the_option_json_prints_only_json_on_standard_output(testbed, tmp_path):
    code, out, err = testbed("run", SUITE, "--row", "reduced-batch", "--results", tmp_path, "--json")
    (done,) = json.loads(out)
    assert done["exit_code"] == code == 0
    assert done["run"]["command"] == f"testbed run {SUITE} --row reduced-batch --results {tmp_path} --json"
    assert "size tiny for a100_80gb, on a machine of the tests" in err


def test_a_run_with_an_error_ends_with_exit_code_3(testbed, monkeypatch, tmp_path):
    def raise_error(self, rows):
        raise RuntimeError("the floor gave way")

    monkeypatch.setattr(FakeRunner, "run", raise_error)
    code, _, err = testbed("run", SUITE, "--results", tmp_path)
    assert code == 3
    assert "the floor gave way" in err


def test_the_option_group_runs_every_lab_of_a_group_and_cannot_be_combined_with_a_suite(testbed, tmp_path):
    rows = ("--row", "tiny-baseline", "--row", "reduced-batch")
    _, out, _ = testbed("run", "--group", "single", *rows, "--results", tmp_path, "--json")
    assert [done["run"]["suite"] for done in json.loads(out)] == ["single_gpu_blip2", "single_gpu_litgpt"]
    assert testbed("run", SUITE, "--group", "single", "--results", tmp_path)[0] == 2
