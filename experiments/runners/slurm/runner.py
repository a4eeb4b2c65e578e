"""Run rows on clusters: each row is a Slurm job, which continues if this program ends.

Before a job is submitted, a record of it is written into the row's folder (job.json). A later run with the same options
finds the job by this record, or by the job's name and comment, and tracks it.
"""

import secrets
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Thread

from experiments.errors import InputError, Interrupted
from experiments.inputs.dataset import DataSet
from experiments.results.run_folder import RunFolder, row_path
from experiments.results.schema import SPEC_FILE
from experiments.runners.local.runner import GRACE_S, clear_row_folder, collect_stop_signals
from experiments.runners.local.warm import WORKER_MODULE
from experiments.runners.plan import PlannedRow
from experiments.runners.progress import View
from experiments.runners.remaining import ExpectedTime
from experiments.runners.slurm import queue
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.job_script import JobSpec
from experiments.runners.slurm.layout import SCRIPT_FILE, STARTED_FILE
from experiments.runners.slurm.staging import Staging, jobs_to_cancel
from experiments.runners.slurm.submission import Submission, attempt_in, comment_of, read_submission, write_submission
from experiments.runners.slurm.tracking import JobTracker, TrackedRow
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from experiments.system.files import write_atomically
from provision.errors import CommandFailed

POLL_INTERVAL_S = 0.25
LEASE_RESERVE_S = 600.0
"""Time before the end of a lease that is reserved for downloads."""
LEASE_QUERY_INTERVAL_S = 60.0
"""Minimum time between two queries of the end of a lease."""


class SlurmRunner:
    """Runs rows on ``cluster`` and downloads their results to ``folder``; see LocalRunner.

    ends_at: returns the end of the nodes' lease, None without a lease. The function is called at most once in
    LEASE_QUERY_INTERVAL_S, because the lease may be extended. Rows that may not finish before this end are not started.
    is_leased: returns whether the nodes are still leased; called when they do not answer. now: returns the current
    time. data: the run's data, if they must be staged on the cluster. expected: expected times of rows, by row.
    """

    def __init__(
        self,
        folder: RunFolder,
        cluster: Cluster,
        view: View,
        worker: str = WORKER_MODULE,
        grace_s: float = GRACE_S,
        ends_at: Callable[[], datetime | None] = lambda: None,
        is_leased: Callable[[], bool] = lambda: True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        data: DataSet | None = None,
        expected: Mapping[str, ExpectedTime] | None = None,
    ) -> None:
        self._folder = folder
        self._run_id = folder.read_run().run_id
        self._cluster = cluster
        self._shell = cluster.shell
        self._view = view
        self._worker = worker
        self._grace_s = grace_s
        self._ends_at = ends_at
        self._lease_query: tuple[datetime, datetime | None] | None = None
        self._is_leased = is_leased
        self._now = now
        self._staging = Staging(cluster, view, data)
        self._expected = expected

    def run(self, rows: Sequence[PlannedRow]) -> None:
        """Run the rows and download their results. Rows that need no staged artifacts are submitted first.

        The end of the lease is queried while the cluster is prepared, because each of the two takes seconds.

        Raises Interrupted after SIGINT or SIGTERM, and NotReached if the cluster does not answer for an hour. In both
        cases the jobs continue, and the next run tracks them.
        """
        querying = Thread(target=self._lease_ends_soon, daemon=True)
        querying.start()
        self._cluster.prepare(self._folder)
        querying.join()
        tracker = JobTracker(self._folder, self._cluster, self._staging, self._view, self._is_leased, self._expected)
        with collect_stop_signals() as received, self._view.live():
            queued = queue.list_jobs(self._shell)
            for row in sorted(rows, key=lambda row: bool(self._staging.artifacts(row.spec))):
                if received:
                    break
                if tracked := self._begin(row, queued, tracker):
                    tracker.rows.append(tracked)
            self._follow(tracker, received, len(rows))

    def cancel(self) -> list[str]:
        """Cancel the run's jobs; return the rows whose jobs were cancelled."""
        prefix = f"{self._run_id}/"
        jobs = jobs_to_cancel(queue.list_jobs(self._shell), prefix)
        queue.cancel(self._shell, [job.id for job in jobs])
        return [job.name.rpartition("/")[2] for job in jobs if job.name.startswith(prefix)]

    def _follow(self, tracker: JobTracker, received: list[int], total: int) -> None:
        while tracker.rows:
            if received:
                self._report_continuing_jobs(tracker)
                raise Interrupted(signal.Signals(received[0]).name)
            tracker.poll_if_due()
            if self._lease_ends_soon():
                tracker.cancel_all()
            tracker.show(total)
            if tracker.rows:
                time.sleep(POLL_INTERVAL_S)

    def _report_continuing_jobs(self, tracker: JobTracker) -> None:
        names = ", ".join(row.spec.row for row in tracker.rows)
        self._view.print_line(
            f"jobs that continue at {self._shell.where}: {names}; "
            "run the same command to track them again, or with --cancel to cancel them"
        )

    def _begin(self, planned: PlannedRow, queued: Sequence[queue.Job], tracker: JobTracker) -> TrackedRow | None:
        """Find the row's job among the ``queued`` jobs or submit a new one; return the row with the job.

        Returns None, and submits no job, if the time limit of the row exceeds the remaining time of the lease.
        """
        spec = planned.spec
        row_folder = tracker.row_folder(spec)
        jobs = [job for job in queued if job.name == self._job_name(spec) and not job.has_ended]
        for job in jobs:
            if attempt := attempt_in(job, spec):
                write_submission(row_folder, spec, attempt, job.id)
                self._view.report_start(spec, f"job {job.id} is already in the queue")
                return TrackedRow(self._job_spec(spec, attempt), job)
        queue.cancel(self._shell, [job.id for job in jobs])
        submission = read_submission(row_folder, spec)
        if submission and self._has_started(spec, submission):
            self._view.report_start(spec, "its job has ended in the meantime")
            return TrackedRow(self._job_spec(spec, submission.attempt), None, script_started=True)
        if not self._fits_into_lease(spec):
            self._view.print_warning(f"{spec.row}: not started, it may not finish before the lease ends")
            return None
        return self._submit(planned, submission.attempt if submission else secrets.token_hex(4), tracker)

    def _submit(self, planned: PlannedRow, attempt: str, tracker: JobTracker) -> TrackedRow:
        spec = planned.spec
        row_folder = clear_row_folder(tracker.row_folder(spec))
        write_atomically(row_folder / SPEC_FILE, spec.model_dump_json(indent=2))
        write_submission(row_folder, spec, attempt)
        job_spec = replace(self._job_spec(spec, attempt), waits_for_jobs=self._staging.begin(spec))
        name, comment = self._job_name(spec), comment_of(spec, attempt)
        script = self._cluster.scripts.row_script(job_spec, self._run_id, name, comment)
        path = f"{self._remote_folder}/{job_spec.folder}/{SCRIPT_FILE}"
        self._shell.put(script.encode(), path)
        try:
            job_id = queue.submit(self._shell, path, lambda: self._find_submitted(comment))
        except CommandFailed as problem:
            raise InputError(f"--profile {self._cluster.profile.name}: row {spec.row}: {problem}") from None
        write_submission(row_folder, spec, attempt, job_id)
        self._view.report_start(spec, f"{planned.why}; job {job_id}")
        return TrackedRow(job_spec, queue.Job(job_id, "PENDING", "", name, ""))

    def _find_submitted(self, comment: str) -> str:
        """Return the id of the job with this comment, '' if Slurm has no such job."""
        return next((job.id for job in queue.list_jobs(self._shell) if job.comment == comment), "")

    def _has_started(self, spec: RowSpec, submission: Submission) -> bool:
        started = f"{self._remote_folder}/{self._job_spec(spec, submission.attempt).folder}/{STARTED_FILE}"
        return self._shell.run(f"test -e {started}", check=False, repeatable=True).code == 0

    def _fits_into_lease(self, spec: RowSpec) -> bool:
        return not self._lease_ends_within(self._job_spec(spec, "").limit_s + LEASE_RESERVE_S)

    def _lease_ends_soon(self) -> bool:
        return self._lease_ends_within(LEASE_RESERVE_S)

    def _lease_ends_within(self, seconds: float) -> bool:
        """Return whether the lease ends in less than this many seconds from now."""
        now = self._now()
        if self._lease_query is None or now - self._lease_query[0] >= timedelta(seconds=LEASE_QUERY_INTERVAL_S):
            self._lease_query = now, self._ends_at()
        end = self._lease_query[1]
        return end is not None and now + timedelta(seconds=seconds) > end

    @property
    def _remote_folder(self) -> str:
        return self._cluster.layout.run_folder(self._run_id)

    def _job_spec(self, spec: RowSpec, attempt: str) -> JobSpec:
        return JobSpec(spec, attempt, self._worker, self._grace_s)

    def _job_name(self, spec: RowSpec) -> str:
        return f"{self._run_id}/{row_path(spec.suite, spec.row)}"


def most_needed_rows_first(rows: Sequence[PlannedRow], suite: Suite) -> list[PlannedRow]:
    """Return the rows in the order in which they are submitted: rows on which more statements depend come first."""

    def statement_count(planned: PlannedRow) -> int:
        compared = [{name for check in claim.checks for name in (check.row, check.over_row)} for claim in suite.claims]
        expected = suite.row(planned.row).expect
        own_statements = (expected.outcome is not None) + len(expected.reference_values)
        return own_statements + sum(planned.row in names for names in compared)

    return sorted(rows, key=statement_count, reverse=True)
