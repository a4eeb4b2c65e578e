"""The behavior that all runners share, for rows on this machine and for rows as jobs of a real Slurm."""

from typing import Any

import pytest

from experiments.results.schema import NOTEBOOK_FILE
from experiments.runners.plan import plan
from tests.support.processes.waiting import wait_for
from tests.support.results import in_memory
from tests.testbed.slurm.runs import HANG_S, LocalHarness, SlurmHarness

BEHAVIOR: dict[str, Any] = {"a": "oom", "b": "child", "c": "silent", "d": "garbled", "e": "die", "g": "hang"}


@pytest.fixture(scope="module", params=["local", "slurm"])
def harness(request, cluster, tmp_path_factory):
    """Run seven rows that end in seven different ways."""
    path = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        made = LocalHarness(path, patch) if request.param == "local" else SlurmHarness(path, cluster)
        made.run("abcdefg", **BEHAVIOR)
        yield made


def test_every_row_ends_with_a_result_however_its_worker_ended(harness):
    ended = {"a": "oom", "b": "fits", "c": "error", "d": "error", "e": "error", "f": "fits", "g": "timeout"}
    unexpected = [row for row, outcome in harness.outcomes().items() if outcome != ended[row]]
    assert harness.outcomes() == ended, "\n".join(map(harness.files, unexpected))


def test_the_reason_of_a_failed_row_names_the_row_s_error_and_not_the_runner_s(harness):
    reasons = {row: result.reason for row, result in harness.folder.results().items()}
    assert reasons["a"] == "fake worker: oom"
    assert reasons["c"] == "ended without a result: last line of c"
    assert "not a result of schema version 1" in reasons["d"]
    assert reasons["g"].endswith("the time limit is 20 s")


def test_the_result_of_a_hanging_row_has_its_last_progress(harness):
    result = harness.folder.results()["g"]
    assert (result.failure.phase, result.failure.step, result.memory.peak_gib) == ("backward", 3, 1.5)


def test_each_row_is_reported_once_at_its_start_and_once_at_its_end(harness):
    for row in "abcdefg":
        lines = [line for line in harness.view.lines if line.startswith(f"{row}: ")]
        assert len(lines) == 2, lines
        assert lines[0].startswith(f"{row}: starts (no result yet")


def test_rows_run_side_by_side_and_each_row_starts_once(harness):
    assert [harness.start_count(row) for row in "abcdefg"] == [1] * 7
    assert max(len([state for state in states if state.elapsed_s]) for states, *_ in harness.view.shown) > 1


def test_the_notebook_and_log_of_a_row_are_on_this_machine(harness):
    assert (harness.folder.row_folder_named("f") / NOTEBOOK_FILE).stat().st_size > 1000
    assert "last line of f" in (harness.folder.row_folder_named("f") / "log.txt").read_text()


def test_no_process_of_a_row_is_left_not_even_a_detached_one(harness):
    wait_for(lambda: not harness.running_processes(), 10)


def test_finished_rows_keep_their_results_and_the_others_run_again(harness):
    limits = {**dict.fromkeys("abcdef", 60), "g": HANG_S}
    suite = in_memory.suite([{"id": row, "settings": {"batch_size": 2, "time_limit_s": limits[row]}} for row in limits])
    run = harness.folder.read_run().model_copy(update={"size": "tiny"})
    again = {row.row: row.must_run for row in plan(suite, run, harness.folder)}
    assert again == {"a": False, "b": False, "f": False, "c": True, "d": True, "e": True, "g": True}
