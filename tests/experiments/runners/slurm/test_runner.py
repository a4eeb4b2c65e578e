"""Test the Slurm runner without Slurm, on a fake cluster: submission, jobs that exist already, the end of a lease."""

import os
import signal
from datetime import timedelta
from threading import Event
from types import SimpleNamespace

import pytest

from experiments.errors import InputError, Interrupted
from experiments.runners.slurm import runner as module
from experiments.runners.slurm.job_script import JobSpec
from experiments.runners.slurm.layout import STARTED_FILE
from experiments.runners.slurm.queue import Job
from experiments.runners.slurm.runner import SlurmRunner, most_needed_rows_first
from experiments.runners.slurm.submission import attempt_in, comment_of, read_submission, write_submission
from experiments.runners.slurm.tracking import JobTracker, TrackedRow
from experiments.suites.suite import suite_named
from provision.errors import NotReached
from tests.support.leasing.fake_site import NOW
from tests.support.results import in_memory
from tests.support.runners import rows
from tests.support.runners.fake_cluster import DroppingShell, FakeCluster, job_of


def test_rows_that_most_statements_need_are_submitted_first():
    """Few statements need the row with the larger batch, and many need the baseline."""
    suite = suite_named("single_gpu_blip2")
    planned = rows.rows_to_run(
        *(in_memory.run(suite="single_gpu_blip2").spec(suite, row) for row in ("grad-accumulation-lr4", "baseline"))
    )
    assert [row.row for row in most_needed_rows_first(planned, suite)] == ["baseline", "grad-accumulation-lr4"]


def test_a_job_is_recognized_by_its_comment_only_if_the_settings_of_its_row_are_the_same():
    spec = rows.spec("a")
    job = Job("7", "RUNNING", "", "run/lab/a", comment_of(spec, "abc"))
    assert attempt_in(job, spec) == "abc"
    assert attempt_in(job, rows.spec("a", max_steps=7)) is None


@pytest.mark.parametrize("comment", ["", "by somebody else", "llm-testbed fetches 12 to /cache"])
def test_a_job_of_somebody_else_is_not_recognized(comment):
    assert attempt_in(Job("7", "RUNNING", "", "run/lab/a", comment), rows.spec("a")) is None


def test_a_stored_submission_counts_only_if_the_settings_of_its_row_are_the_same(tmp_path):
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


A_ENDS = "a: fits, peak 2 GiB"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    made = FakeCluster(tmp_path)
    monkeypatch.setattr(module, "Staging", lambda *arguments: made.staging)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=end_after_ticks(99)))
    return made


def end_after_ticks(number):
    """Return a fake of time.sleep that fails the test after so many calls, in place of an endless run."""
    ticks = iter(range(number))
    return lambda seconds: next(ticks, None) is not None or pytest.fail("the run does not end")


@pytest.fixture
def run(cluster):
    """Run rows on the fake cluster; return the names of the submitted jobs."""

    def begin(*names, **options):
        planned = rows.rows_to_run(*map(rows.spec, names))
        SlurmRunner(cluster.run, cluster, cluster.view, "some.worker", **options).run(planned)
        return cluster.words_in("submitted")

    return begin


def queue_of(cluster, *states, name="20261121-1200-lab/lab/a", attempt="abcdefgh", **changes):
    """Put a job of row a into the queue in each of these states, with number 7 and so on."""
    lines = [f"{number}|{state}|None" for number, state in enumerate(states, 7)]
    cluster.queue(*lines, name=name, comment=comment_of(rows.spec("a", **changes), attempt))


def test_a_row_is_submitted_and_its_result_is_downloaded(cluster, run):
    (name,) = run("a")
    job = job_of(rows.spec("a"), name.removeprefix("a-"))
    assert cluster.script_of(job).split("\n")[:2] == ["20261121-1200-lab/lab/a", comment_of(job.spec, job.attempt)]
    assert len(job.attempt) == 8
    assert cluster.view.lines == ["a: starts (no result yet; job 8)", A_ENDS]
    assert cluster.result_of().outcome == "fits"
    assert (cluster.view.shown[-1][1:3], cluster.words_in("cancelled")) == ((1, 1), [])


def test_rows_that_need_no_download_are_submitted_before_others(cluster, run):
    cluster.artifacts = {"a": ("weights",)}
    assert [name[0] for name in run("a", "b")] == ["b", "a"]


def test_a_run_continues_if_the_connection_drops(cluster, run):
    cluster.shell = DroppingShell()
    queue_of(cluster, "RUNNING", max_steps=7)
    write_submission(cluster.row_folder("b"), rows.spec("b"), "abcdefgh", "9")
    assert len(run("a", "b")) == 2
    assert cluster.words_in("cancelled") == ["--quiet", "7"]
    assert cluster.result_of("a").outcome == "fits"


def test_a_rejected_submission_names_the_profile_and_the_row(cluster, run):
    (cluster.home / "rejected").touch()
    with pytest.raises(InputError, match=r"--profile x: row a: .*no such account"):
        run("a")
    assert read_submission(cluster.row_folder(), rows.spec("a")).job is None


def test_a_job_that_is_in_the_queue_is_tracked_and_not_submitted_again(cluster, run):
    queue_of(cluster, "RUNNING")
    job = job_of(rows.spec("a"))
    cluster.write(job, STARTED_FILE, "7")
    cluster.write(job, "ended", "0")
    cluster.write(job, "result.json", (cluster.home / "result-of-a").read_text())
    assert run("a") == []
    assert cluster.view.lines == ["a: starts (job 7 is already in the queue)", A_ENDS]
    assert cluster.words_in("cancelled") == []


@pytest.mark.parametrize(
    ("job", "cancelled"),
    [
        ({"max_steps": 7}, ["--quiet", "7"]),
        ({"name": "20261121-1200-lab/lab/b"}, []),
        ({"name": "another-run/lab/a"}, []),
    ],
)
def test_only_a_job_of_the_same_row_with_other_settings_is_cancelled_and_replaced(cluster, run, job, cancelled):
    queue_of(cluster, "RUNNING", **job)
    assert len(run("a")) == 1
    assert cluster.words_in("cancelled") == cancelled


@pytest.mark.parametrize("started", [True, False])
def test_a_job_that_ended_between_two_commands_is_submitted_again_only_if_it_never_started(cluster, run, started):
    queue_of(cluster, "COMPLETED")
    job = job_of(rows.spec("a"))
    write_submission(cluster.row_folder(), job.spec, job.attempt, "7")
    if started:
        cluster.write(job, STARTED_FILE, "7")
        cluster.write(job, "result.json", (cluster.home / "result-of-a").read_text())
    assert run("a") == ([] if started else ["a-abcdefgh"])
    why = "its job has ended in the meantime" if started else "no result yet; job 8"
    assert cluster.view.lines == [f"a: starts ({why})", A_ENDS]


JOB_S = 60 + 120 + 120
"""The time limit of a row, its grace, and the start of its job."""


@pytest.mark.parametrize(("seconds", "submitted"), [(JOB_S + 600, 1), (JOB_S + 599, 0)])
def test_a_row_that_may_not_finish_before_the_lease_ends_is_not_started(cluster, run, seconds, submitted):
    end = NOW + timedelta(seconds=seconds)
    assert len(run("a", now=lambda: NOW, ends_at=lambda: end)) == submitted
    assert ("a: not started, it may not finish before the lease ends" in cluster.view.lines) == (not submitted)


def test_jobs_are_cancelled_shortly_before_the_lease_ends(cluster, run):
    queue_of(cluster, "PENDING")
    run("a", now=lambda: NOW, ends_at=lambda: NOW + timedelta(seconds=599))
    assert cluster.words_in("cancelled") == ["--quiet", "7"]
    assert cluster.view.lines[-1] == "a: cancelled, the lease ends"


def test_the_end_of_the_lease_is_queried_once_in_each_interval(cluster):
    clock, queries = [NOW], []
    runner = SlurmRunner(
        cluster.run, cluster, cluster.view, ends_at=lambda: queries.append(clock[0]), now=lambda: clock[0]
    )
    for _ in range(4):
        assert not runner._lease_ends_soon()
        clock[0] += timedelta(seconds=30)
    assert queries == [NOW, NOW + timedelta(seconds=60)]


def test_the_end_of_the_lease_is_queried_at_the_same_time_as_the_cluster_is_prepared(cluster, run):
    queried, waited = Event(), []
    cluster.prepare = lambda folder: waited.append(queried.wait(10))
    run("a", now=lambda: NOW, ends_at=queried.set)
    assert waited == [True]


def test_an_interrupt_leaves_the_jobs_running_and_names_their_rows(cluster, run):
    queue_of(cluster, "PENDING")
    cluster.view.show_rows = lambda *states: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run("a")
    assert ": a; run the same command to track them again" in cluster.view.lines[1]
    assert cluster.words_in("cancelled") == []


def test_cancelling_a_run_cancels_its_unfinished_jobs(cluster):
    queue_of(cluster, "PENDING", "COMPLETED", "RUNNING")
    assert SlurmRunner(cluster.run, cluster, cluster.view).cancel() == ["a", "a"]
    assert cluster.words_in("cancelled") == ["--quiet", "7", "9"]


def test_the_jobs_of_a_cluster_that_does_not_answer_stay_tracked(cluster, run, monkeypatch):
    """A cluster without a lease counts as available."""
    shell_run, polls = cluster.shell.run, []

    def drop_first_poll(command, **options):
        if "echo ==" in command:
            polls.append(command)
            if len(polls) == 1:
                raise NotReached("x: not reached")
        return shell_run(command, **options)

    monkeypatch.setattr(cluster.shell, "run", drop_first_poll)
    monkeypatch.setattr(JobTracker, "poll_if_due", poll_at_once)
    assert len(run("a")) == 1
    assert cluster.view.lines[-2:] == ["x: not reached; the jobs continue, retrying", A_ENDS]


def poll_at_once(tracker, poll_if_due=JobTracker.poll_if_due):
    tracker._poll_at = 0.0
    poll_if_due(tracker)
