"""The tracking of jobs until each row has a result here. Fakes: squeue and scancel, and the rest of the cluster."""

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.results.schema import LOG_FILE, PROGRESS_FILE, RESULT_FILE, Progress
from experiments.runners.remaining import ExpectedTime
from experiments.runners.slurm import tracking
from experiments.runners.slurm.queue import Job
from experiments.runners.slurm.submission import SUBMISSION_FILE, write_submission
from experiments.runners.slurm.tracking import JobTracker, TrackedRow
from provision.errors import NotReached
from provision.ssh.shell import LocalShell
from tests.support.results import in_memory
from tests.support.runners import rows
from tests.support.runners.fake_cluster import FakeCluster, job_of
from tests.support.runners.fake_time import FakeTime

DEVICE = in_memory.GPU.model_copy(update={"name": "NVIDIA | 80GB"})
PROGRESS = Progress(phase="forward", step=2, micro_steps=9, planned_micro_steps=24, left_s=75.0, device=DEVICE)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    return FakeCluster(tmp_path)


@pytest.fixture
def tracker(cluster):
    return JobTracker(cluster.run, cluster, cluster.staging, cluster.view, lambda: cluster.leased)


@pytest.fixture
def track(cluster, tracker):
    """Track a row, whose job has number 7."""

    def begin(name="a", state="PENDING", **known):
        job = job_of(rows.spec(name), f"{name}bcdefgh")
        for folder in (job.folder, job.row_folder):
            (cluster.run_there / folder).mkdir(parents=True)
        write_submission(cluster.run.row_folder(job.spec), job.spec, job.attempt, "7")
        tracker.rows.append(TrackedRow(job, Job("7", state, "None", "run/lab/a", ""), **known))
        return tracker.rows[-1]

    return begin


def poll(tracker):
    tracker._poll_at = 0.0
    tracker.poll_if_due()


def test_a_running_row_has_the_progress_and_the_log_of_its_job(cluster, track, tracker):
    row = track()
    cluster.queue("7|RUNNING|None")
    cluster.write(row.job_spec, "started", "7")
    cluster.write(row.job_spec, PROGRESS_FILE, PROGRESS.model_dump_json())
    cluster.write(row.job_spec, LOG_FILE, "step 2\n")
    poll(tracker)
    local = cluster.row_folder()
    assert (row.script_started, row.exit_code, row.progress, row.downloads) == (True, None, PROGRESS, "")
    assert Progress.model_validate_json((local / PROGRESS_FILE).read_text()) == PROGRESS
    assert (local / LOG_FILE).read_text() == "step 2\n"
    assert 0 < row.elapsed_s < 60
    began = row.left_queue_at
    cluster.write(row.job_spec, PROGRESS_FILE, "half of a rep")
    poll(tracker)
    assert (row.left_queue_at, row.progress) == (began, PROGRESS)


def test_without_a_new_progress_report_of_the_job_no_progress_is_written(cluster, track, tracker):
    row = track(progress=PROGRESS)
    cluster.queue("7|RUNNING|None")
    poll(tracker)
    assert row.progress == PROGRESS
    assert not (cluster.row_folder() / PROGRESS_FILE).exists()


def test_a_row_in_the_queue_has_no_elapsed_time_and_no_progress(cluster, track, tracker):
    row = track()
    cluster.queue("7|PENDING|Resources")
    poll(tracker)
    assert (row.script_started, row.left_queue_at, row.elapsed_s, row.has_ended) == (False, None, 0.0, False)
    assert row.state.status == "queued (Resources: the weights)"
    assert not (cluster.row_folder() / PROGRESS_FILE).exists()


def test_a_row_whose_job_has_ended_gets_the_result_of_the_job(cluster, track, tracker):
    """The job's script has ended, and Slurm still lists the job as running."""
    row, other = track(), track("b")
    cluster.queue("7|RUNNING|None")
    cluster.write(row.job_spec, "started", "7")
    cluster.write(row.job_spec, "ended", "0")
    cluster.write(row.job_spec, RESULT_FILE, in_memory.result("a", memory={"peak_gib": 2.0}).model_dump_json())
    poll(tracker)
    assert tracker.rows == [other]
    assert cluster.view.lines == ["a: fits, peak 2 GiB"]
    assert cluster.result_of().outcome == "fits"
    assert not (cluster.row_folder() / SUBMISSION_FILE).exists()
    assert (cluster.run_there / row.job_spec.folder / "fetched").exists()


@pytest.mark.parametrize(
    ("queued", "files", "outcome", "reason"),
    [
        ("7|TIMEOUT|TimeLimit", {"started": "7"}, "timeout", "job ended as TIMEOUT (TimeLimit)"),
        ("7|NODE_FAIL|None", {"started": "7"}, "error", "job ended as NODE_FAIL"),
        ("", {"started": "7"}, "error", "job is no longer known to Slurm"),
        (
            "7|FAILED|NonZeroExitCode",
            {"out.txt": "a\nno such file\n"},
            "error",
            "job ended as FAILED: no such file",
        ),
        ("7|FAILED|NonZeroExitCode", {"out.txt": " \n"}, "error", "job ended as FAILED"),
        (
            "7|FAILED|NonZeroExitCode",
            {"started": "7", "ended": "75", "out.txt": "the row's GPUs are not free\n"},
            "error",
            "job ended as FAILED: the row's GPUs are not free",
        ),
        ("7|FAILED|None", {"started": "7", RESULT_FILE: "{}"}, "error", "/a/result.json: not a result of schema"),
    ],
)
def test_a_row_whose_job_wrote_no_result_gets_a_result_with_the_reason(
    cluster, track, tracker, queued, files, outcome, reason
):
    row = track()
    cluster.queue(*filter(None, [queued]))
    for name, text in files.items():
        cluster.write(row.job_spec, name, text)
    poll(tracker)
    result = cluster.result_of()
    assert result.outcome == outcome
    assert reason == result.reason or (RESULT_FILE in files and reason in result.reason)
    assert (result.device.name, result.device.count) == ("NVIDIA T4", 1)
    assert tracker.rows == []


def test_a_failed_result_has_the_last_progress_of_the_row(cluster, track, tracker):
    row = track(script_started=True, progress=PROGRESS, left_queue_at=time.monotonic() - 100)
    cluster.write(row.job_spec, "started", "7")
    poll(tracker)
    result = cluster.result_of()
    assert (result.failure.phase, result.failure.step, result.device) == ("forward", 2, DEVICE)
    assert 100 <= result.elapsed_s < 160


@pytest.mark.parametrize(("started", "reason"), [(False, "no network"), (True, "job ended as CANCELLED")])
def test_the_result_of_a_row_that_never_started_has_the_reason_of_the_failed_download(
    cluster, track, tracker, started, reason
):
    track(script_started=started)
    cluster.queue("7|CANCELLED|None")
    cluster.download_failure = "no network"
    poll(tracker)
    assert cluster.result_of().reason == reason


def test_an_unreachable_cluster_is_reported_once_and_given_up_after_an_hour(cluster, track, tracker, monkeypatch):
    row = track()
    clock = FakeTime(10.0)
    monkeypatch.setattr(tracking, "time", clock)

    def drop(*arguments, **options):
        raise NotReached("x: not reached")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.shell, "run", drop)
        poll(tracker)
        clock.now += 3600
        poll(tracker)
        assert cluster.view.lines == ["x: not reached; the jobs continue, retrying"]
        clock.now += 1
        with pytest.raises(NotReached):
            poll(tracker)
    cluster.queue("7|PENDING|Resources")
    poll(tracker)
    monkeypatch.setattr(cluster.shell, "run", drop)
    poll(tracker)
    assert tracker.rows == [row]
    cluster.leased = False
    poll(tracker)
    assert tracker.rows == []
    assert cluster.view.lines[-1] == "a: not finished, the lease is over or was deleted"


def test_the_queue_is_queried_once_in_each_interval(cluster, tracker, monkeypatch):
    clock = FakeTime(10.0)
    monkeypatch.setattr(tracking, "time", clock)
    queries = []
    monkeypatch.setattr(tracker, "_poll", lambda: queries.append(clock.now))
    for _ in range(13):
        tracker.poll_if_due()
        clock.now += 10
    assert queries == [10.0, 70.0, 130.0]


def test_cancelled_rows_keep_their_logs_and_their_stored_submissions_are_removed(cluster, track, tracker):
    row, _ = track(script_started=True), track("b")
    tracker.rows.append(TrackedRow(job_of(rows.spec("c")), None))
    cluster.write(row.job_spec, LOG_FILE, "step 2\n")
    tracker.cancel_all()
    assert cluster.words_in("cancelled") == ["--quiet", "7", "7"]
    assert (cluster.row_folder() / LOG_FILE).read_text() == "step 2\n"
    assert not (cluster.row_folder() / SUBMISSION_FILE).exists()
    assert tracker.rows == []
    assert cluster.view.lines[0] == "a: cancelled, the lease ends"


@pytest.mark.parametrize(
    ("left", "state", "expected"),
    [
        ([75.0, 30.0], "RUNNING", 75.0),
        ([75.0, None], "RUNNING", None),
        ([None, None], "RUNNING", None),
        ([75.0, 30.0], "PENDING", None),
    ],
)
def test_on_a_shared_cluster_the_time_left_is_known_if_every_row_runs_and_reports_its_own(
    cluster, track, tracker, left, state, expected
):
    for name, seconds in zip("ab", left, strict=True):
        track(name, state, progress=PROGRESS.model_copy(update={"left_s": seconds}))
    tracker.show(5)
    states, *numbers = cluster.view.shown[-1]
    assert ([one.spec.row for one in states], numbers) == (["a", "b"], [3, 5, expected])


def test_on_leased_nodes_the_time_left_includes_the_expected_times_of_waiting_rows(cluster, track):
    expected = {row: ExpectedTime(100.0, 20.0) for row in "ab"}
    cluster.profile = cluster.profile.model_copy(update={"dedicated": True, "nodes": 1, "gpus_per_node": 1})
    tracker = JobTracker(cluster.run, cluster, cluster.staging, cluster.view, lambda: True, expected)
    for name, state in (("a", "RUNNING"), ("b", "PENDING")):
        tracker.rows.append(track(name, state, progress=PROGRESS if state == "RUNNING" else None))
    tracker.show(2)
    assert cluster.view.shown[-1][-1] == pytest.approx(75.0 + 100.0, abs=1)


def test_all_jobs_of_a_row_with_downloaded_results_are_marked_and_no_jobs_of_other_rows(tmp_path):
    names = ("xxl-aaaaaaaa", "xxl-bbbbbbbb", "xxl-sgd-cccccccc")
    for name in names:
        (tmp_path / ".jobs" / name).mkdir(parents=True)
    tracker: Any = SimpleNamespace(_shell=LocalShell(), _remote_folder=str(tmp_path))
    row: Any = SimpleNamespace(job_spec=SimpleNamespace(folder=".jobs/xxl-aaaaaaaa", attempt="aaaaaaaa"))
    JobTracker._record_fetched(tracker, row)
    assert [(tmp_path / ".jobs" / name / "fetched").exists() for name in names] == [True, True, False]
