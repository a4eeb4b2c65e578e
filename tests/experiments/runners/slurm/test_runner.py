"""Test the Slurm runner without Slurm: the order of submission, and how it recognizes its jobs."""

import pytest

from experiments.runners.slurm.job_script import JobSpec
from experiments.runners.slurm.queue import Job
from experiments.runners.slurm.runner import most_needed_rows_first
from experiments.runners.slurm.submission import attempt_in, comment_of, read_submission, write_submission
from experiments.runners.slurm.tracking import TrackedRow
from experiments.suites.suite import suite_named
from tests.support.results import in_memory
from tests.support.runners import rows


def test_rows_that_most_statements_need_go_first():
    """Few statements need the row with the larger batch, and many need the baseline."""
    suite = suite_named("single_gpu_blip2")
    planned = rows.rows_to_run(
        *(in_memory.run(suite="single_gpu_blip2").spec(suite, row) for row in ("grad-accumulation-lr4", "baseline"))
    )
    assert [row.row for row in most_needed_rows_first(planned, suite)] == ["baseline", "grad-accumulation-lr4"]


def test_a_job_is_recognized_by_its_comment_only_with_the_same_settings():
    spec = rows.spec("a")
    job = Job("7", "RUNNING", "", "run/lab/a", comment_of(spec, "abc"))
    assert attempt_in(job, spec) == "abc"
    assert attempt_in(job, rows.spec("a", max_steps=7)) is None


@pytest.mark.parametrize("comment", ["", "by somebody else", "llm-testbed fetches 12 to /cache"])
def test_a_job_of_somebody_else_is_not_recognized(comment):
    assert attempt_in(Job("7", "RUNNING", "", "run/lab/a", comment), rows.spec("a")) is None


def test_a_submission_is_read_only_for_the_same_settings(tmp_path):
    spec = rows.spec("a")
    write_submission(tmp_path / "a", spec, "abc", "7")
    submission = read_submission(tmp_path / "a", spec)
    assert (submission.attempt, submission.job) == ("abc", "7")
    assert read_submission(tmp_path / "a", rows.spec("a", max_steps=7)) is None
    assert read_submission(tmp_path / "b", spec) is None


def test_a_queued_row_shows_slurms_reason_and_what_it_waits_for():
    job = JobSpec(rows.spec("a"), "abc", "some.worker", 120.0)
    row = TrackedRow(job, Job("7", "PENDING", "Dependency", "run/lab/a", ""), downloads="the weights of x 1 GiB")
    assert row.state.status == "queued (Dependency: the weights of x 1 GiB)"
    assert TrackedRow(job, Job("7", "RUNNING", "None", "run/lab/a", "")).state.status == ""
