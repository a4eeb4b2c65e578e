"""Reasons to run a row again, and folders that are rejected."""

from typing import Any

import pytest

from experiments.errors import InputError
from experiments.results.provenance import code_sha256
from experiments.results.run_folder import RunFolder
from experiments.results.schema import RESULT_FILE, Device, Outcome
from experiments.runners import plan as planning
from experiments.runners.plan import continue_run, plan
from experiments.runners.software import Software
from tests.support.results import in_memory
from tests.support.runners import rows as sample_rows

ROW = {"id": "a", "settings": {"batch_size": 16}}


@pytest.fixture
def folder_with_result(tmp_path):
    """Return a run folder in which row a has a result of the current code."""

    def make(outcome: Outcome = "fits", **changes: Any) -> RunFolder:
        folder = sample_rows.folder(tmp_path / "run", "a")
        spec = in_memory.run("a").spec(in_memory.suite([ROW]), "a")
        result = in_memory.result("a", outcome).model_copy(
            update={"spec": spec, "fingerprint": spec.fingerprint, "code": code_sha256(), **changes}
        )
        folder.row_folder_named("a").mkdir(parents=True)
        (folder.row_folder_named("a") / RESULT_FILE).write_text(result.model_dump_json())
        return folder

    return make


def plan_row(folder: RunFolder, row: dict[str, Any] = ROW, **options: Any):
    return plan(in_memory.suite([row]), in_memory.run("a"), folder, **options)[0]


@pytest.mark.parametrize("outcome", ["fits", "oom"])
def test_a_finished_row_does_not_run_again(folder_with_result, outcome):
    row = plan_row(folder_with_result(outcome))
    assert (row.must_run, row.why) == (False, f"finished: {outcome}")


def test_a_finished_row_runs_again_on_request(folder_with_result):
    row = plan_row(folder_with_result(), rerun=True)
    assert (row.must_run, row.why) == (True, "--rerun")


def test_a_changed_format_of_the_settings_is_named_as_the_reason_to_run_again(folder_with_result):
    assert plan_row(folder_with_result(fingerprint="of another version")).why == "the format of the settings changed"


@pytest.mark.parametrize(
    ("outcome", "rerun", "runs"), [("fits", True, True), ("error", False, True), ("oom", False, False)]
)
def test_a_row_that_runs_again_for_another_reason_is_not_marked_as_outdated(folder_with_result, outcome, rerun, runs):
    row = plan_row(folder_with_result(outcome), rerun=rerun)
    assert (row.must_run, row.is_outdated, row.row) == (runs, False, "a")


def test_a_row_without_a_result_runs(tmp_path):
    assert plan_row(sample_rows.folder(tmp_path, "a")).why == "no result yet"


def test_an_interrupted_row_runs_again(tmp_path):
    folder = sample_rows.folder(tmp_path, "a")
    folder.row_folder_named("a").mkdir(parents=True)
    (folder.row_folder_named("a") / "spec.json").write_text("{}")
    assert plan_row(folder).why == "the last run was interrupted"


def test_a_changed_setting_is_named_as_the_reason_to_run_again(folder_with_result):
    folder = folder_with_result()
    row = plan_row(folder, {"id": "a", "settings": {"batch_size": 8, "lr": 0.5}})
    assert row.must_run
    assert row.why == "settings changed: batch_size 16 -> 8, global_batch_size 16 -> 8, lr 0.0001 -> 0.5"


def test_changed_training_code_runs_the_row_again(folder_with_result, monkeypatch):
    folder = folder_with_result()
    monkeypatch.setattr(planning, "code_sha256", lambda: "another")
    assert plan_row(folder).why == "training code changed"


@pytest.mark.parametrize("outcome", ["error", "timeout", "host_oom"])
def test_a_row_with_an_error_runs_again(folder_with_result, outcome):
    assert plan_row(folder_with_result(outcome, reason="no luck")).why == "the last run failed: no luck"


def test_a_rejected_row_is_tried_again(folder_with_result):
    assert plan_row(folder_with_result("rejected", reason="no GPU")).why == "rejected in the last run: no GPU"


def test_a_result_of_another_schema_is_rejected(folder_with_result):
    folder = folder_with_result()
    path = folder.row_folder_named("a") / RESULT_FILE
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":7'))
    with pytest.raises(InputError, match="not a result of schema version 1"):
        plan_row(folder)


def test_rows_that_were_requested_earlier_stay_in_the_run(tmp_path):
    folder = sample_rows.folder(tmp_path, "b", started_at="then")
    run = continue_run(folder, in_memory.run("a"), in_memory.suite())
    assert (run.rows, run.started_at) == (("a", "b"), "then")


def test_a_run_in_a_new_folder_starts_from_the_beginning(tmp_path):
    run = in_memory.run("a")
    assert continue_run(RunFolder(tmp_path / "new"), run, in_memory.suite()) is run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe_version": 2},
            "has results of version 1 of suite lab, which is now version 2; choose another --run-id",
        ),
        (
            {"size": "tiny"},
            "has results with size full, but size is now tiny; choose another --run-id or remove the folder",
        ),
        ({"card": "h100_94gb"}, "has results with card a100_80gb, but card is now h100_94gb"),
        ({"length": "verdict"}, "has results with length as-taught, but length is now verdict"),
        ({"image_variant": "as-taught"}, "has results with image_variant current, but image_variant is now as-taught"),
        ({"data_sha256": "ab"}, "has results with data_sha256 None, but data_sha256 is now ab"),
    ],
)
def test_a_folder_of_a_run_with_other_options_is_rejected(tmp_path, changes, message):
    folder = sample_rows.folder(tmp_path, "a")
    with pytest.raises(InputError, match=message):
        continue_run(folder, in_memory.run("a", **changes), in_memory.suite())


VERSIONS = {"torch": "2.11.0+cu130", "litgpt": "0.5.13", "papermill": "2.6.0"}
GPU: dict[str, Any] = {
    "kind": "cuda",
    "name": "NVIDIA H200",
    "driver": "570.1",
    "host_cpus": 8,
    "host_memory_gib": 64.0,
}


def now(**changes: Any) -> Software:
    given: dict[str, Any] = {
        "versions": {"torch": "2.11.0", "papermill": "2.7.0"},
        "gpus": {"NVIDIA H200"},
        "driver": "570.1",
    }
    return Software(**{**given, **changes})


@pytest.mark.parametrize(
    ("changed_fields", "software", "message"),
    [
        ({}, now(versions={"torch": "2.13.0"}), "torch 2.11.0 -> 2.13.0"),
        ({}, now(driver="580.2"), "driver 570.1 -> 580.2"),
        ({}, now(gpus={"NVIDIA A100"}), "GPU NVIDIA H200 -> NVIDIA A100"),
        ({}, now(gpus=set()), "GPU NVIDIA H200 -> none"),
        ({"versions": {}}, now(), "the result does not record its versions"),
    ],
)
def test_a_row_with_a_result_of_other_software_versions_runs_again_with_the_reason(
    folder_with_result, changed_fields, software, message
):
    folder = folder_with_result(**{"versions": VERSIONS, "device": Device(**GPU), **changed_fields})
    row = plan_row(folder, software=lambda: software)
    assert (row.must_run, row.is_outdated, row.why) == (True, True, f"{message}; the old result is kept in earlier/")
    row = plan_row(folder, software=lambda: software, keep_outdated=True)
    assert (row.must_run, row.why) == (False, f"finished: fits; --keep-outdated: {message}")


@pytest.mark.parametrize("software", [now(), now(gpus=None, driver=None), None])
def test_a_result_of_the_same_software_versions_is_used_again(folder_with_result, software):
    folder = folder_with_result(versions=VERSIONS, device=Device(**GPU))
    assert not plan_row(folder, software=lambda: software).must_run


def test_the_software_of_the_target_is_queried_only_if_a_valid_result_exists(folder_with_result):
    assert plan_row(folder_with_result("error"), software=lambda: pytest.fail("nothing to compare")).must_run
