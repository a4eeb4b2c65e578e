"""Track the jobs of rows, from their submission until each row has a result on this machine."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from experiments.errors import InputError
from experiments.results.run_folder import RunFolder
from experiments.results.schema import (
    LOG_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    TELEMETRY_FILE,
    Outcome,
    Progress,
    Result,
    read_result,
)
from experiments.runners.failed_results import device_of, write_failed_result
from experiments.runners.progress import RowState, View
from experiments.runners.remaining import ExpectedTime, RemainingTime
from experiments.runners.slurm import queue
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.download import download_folder, download_growing_files
from experiments.runners.slurm.job_script import JobSpec
from experiments.runners.slurm.layout import ENDED_FILE, FETCHED_FILE, OUTPUT_FILE, STARTED_FILE
from experiments.runners.slurm.staging import Staging
from experiments.runners.slurm.submission import SUBMISSION_FILE
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.system.logs import error_line
from provision.errors import NotReached

GROWING_FILES = (LOG_FILE, TELEMETRY_FILE)
SILENCE_LIMIT_S = 3600.0
"""Maximum time for which the cluster may not answer."""
SEPARATOR = "=="


@dataclass
class TrackedRow:
    """A row and its job.

    left_queue_at: value of time.monotonic when the job left the queue, None before. script_started: whether the job's
    script has started. exit_code: exit code of the script, None before its end. downloads: artifacts that the job waits
    for.
    """

    job_spec: JobSpec
    job: queue.Job | None
    left_queue_at: float | None = None
    script_started: bool = False
    downloads: str = ""
    exit_code: int | None = None
    progress: Progress | None = None

    @property
    def spec(self) -> RowSpec:
        """Return the row."""
        return self.job_spec.spec

    @property
    def elapsed_s(self) -> float:
        """Return the time since the job left the queue."""
        return time.monotonic() - self.left_queue_at if self.left_queue_at is not None else 0.0

    @property
    def is_waiting(self) -> bool:
        """Return whether the job waits in the queue."""
        return self.job is not None and self.job.is_waiting

    @property
    def has_ended(self) -> bool:
        """Return whether the job has ended: its script has succeeded, or Slurm reports the end."""
        return self.exit_code == 0 or self.job is None or self.job.has_ended

    @property
    def state(self) -> RowState:
        """Return the state of the row for the view."""
        status = ""
        if self.job and self.is_waiting:
            status = f"queued ({': '.join(filter(None, (self.job.reason, self.downloads)))})"
        return RowState(self.spec, self.elapsed_s, self.progress, status)


class JobTracker:
    """Tracks the jobs of rows of the run in ``folder``.

    is_leased: returns whether the cluster's nodes are still leased; called when they do not answer. expected: expected
    times of rows, by row.
    """

    def __init__(
        self,
        folder: RunFolder,
        cluster: Cluster,
        staging: Staging,
        view: View,
        is_leased: Callable[[], bool],
        expected: Mapping[str, ExpectedTime] | None = None,
    ) -> None:
        self.rows: list[TrackedRow] = []
        self._folder = folder
        self._cluster = cluster
        self._shell = cluster.shell
        self._remote_folder = cluster.layout.run_folder(folder.read_run().run_id)
        self._staging = staging
        self._view = view
        self._is_leased = is_leased
        self._remaining = RemainingTime(expected or {})
        self._poll_at = 0.0
        self._silent_since: float | None = None

    def row_folder(self, spec: RowSpec) -> Path:
        """Return the folder of a row on this machine."""
        return self._folder.row_folder(spec)

    def poll_if_due(self) -> None:
        """Update all rows, and finish the rows whose jobs have ended. Does nothing more often than every ``poll_s``.

        Raises NotReached if the cluster has not answered for SILENCE_LIMIT_S.
        """
        if time.monotonic() < self._poll_at:
            return
        try:
            self._poll()
            self._silent_since = None
        except NotReached as problem:
            self._silent_since = self._handle_unreachable(problem)
        self._poll_at = time.monotonic() + self._cluster.profile.poll_s

    def cancel_all(self) -> None:
        """Cancel the jobs, download the incomplete logs and telemetry, and stop tracking the rows."""
        queue.cancel(self._shell, [row.job.id for row in self.rows if row.job])
        self._download_growing_files(row for row in self.rows if row.script_started)
        self.abandon("cancelled, the lease ends")

    def abandon(self, reason: str) -> None:
        """Stop tracking the rows; the next run starts them again."""
        for row in self.rows:
            (self.row_folder(row.spec) / SUBMISSION_FILE).unlink(missing_ok=True)
            self._view.print_warning(f"{row.spec.row}: {reason}")
        self.rows = []

    def show(self, total: int) -> None:
        """Show the rows and how many of ``total`` are done."""
        states = [row.state for row in self.rows]
        self._view.show_rows(states, total - len(self.rows), total, self._remaining_s())

    def _remaining_s(self) -> float | None:
        """Return the time until all rows have ended, s; None while a row waits for GPUs that other jobs use too."""
        waiting = [row.spec for row in self.rows if row.is_waiting]
        dedicated_gpu_count = self._cluster.profile.dedicated_gpu_count
        if waiting and dedicated_gpu_count is None:
            return None
        running = [row.state for row in self.rows if not row.is_waiting]
        gpus = dedicated_gpu_count or sum(max(1, row.spec.settings.gpus) for row in self.rows)
        return self._remaining.estimate_s(running, waiting, lambda spec: spec.settings.gpus, gpus)

    def _handle_unreachable(self, problem: NotReached) -> float:
        """Return when the cluster stopped answering, a value of time.monotonic; warn once when it stops.

        If the lease is over, the rows are abandoned. Raises ``problem`` after SILENCE_LIMIT_S without an answer.
        """
        now = time.monotonic()
        if not self._is_leased():
            self.abandon("not finished, the lease is over or was deleted")
            return now
        if self._silent_since is None:
            self._view.print_warning(f"{problem}; the jobs continue, retrying")
            return now
        if now - self._silent_since > SILENCE_LIMIT_S:
            raise problem
        return self._silent_since

    def _poll(self) -> None:
        """Query all rows with one command; download the rows whose job has ended."""
        listed, status, staging = self._shell.run(self._poll_command(), repeatable=True).out.split(f"{SEPARATOR}\n", 2)
        jobs = {job.id: job for job in queue.parse_jobs(listed)}
        self._staging.update([*jobs.values()], staging)
        fields = [line.split("|", 3) for line in status.splitlines() if line.count("|") >= 3]
        status_of = {attempt: values for attempt, *values in fields}
        for row in self.rows:
            self._update_row(row, jobs, status_of.get(row.job_spec.attempt, ["", "", ""]))
        self._download_growing_files(row for row in self.rows if row.left_queue_at is not None and not row.has_ended)
        for row in [row for row in self.rows if row.has_ended]:
            self._finish(row)

    def _poll_command(self) -> str:
        lines = [queue.LIST_JOBS, f"echo {SEPARATOR}", f"cd {self._remote_folder}"]
        for row in self.rows:
            job, progress = row.job_spec.folder, f"{row.job_spec.row_folder}/{PROGRESS_FILE}"
            contents = " ".join(
                f'"$(cat {path} 2> /dev/null)"' for path in (f"{job}/{STARTED_FILE}", f"{job}/{ENDED_FILE}", progress)
            )
            lines.append(f"printf '%s|%s|%s|%s\\n' {row.job_spec.attempt} {contents}")
        not_started = (row.spec for row in self.rows if not row.script_started)
        return "\n".join([*lines, f"echo {SEPARATOR}", *self._staging.status_commands(not_started)])

    def _update_row(self, row: TrackedRow, jobs: dict[str, queue.Job], status: list[str]) -> None:
        started, exit_code, progress = status
        row.script_started = row.script_started or bool(started)
        row.job = jobs.get(row.job.id) if row.job else None
        row.downloads = self._staging.pending_downloads(row.spec) if row.is_waiting else ""
        row.exit_code = int(exit_code) if exit_code.isascii() and exit_code.isdigit() else None
        if row.left_queue_at is None and row.job and not row.job.is_waiting:
            row.left_queue_at = time.monotonic()
        try:
            row.progress = Progress.model_validate_json(progress) if progress else row.progress
        except ValidationError:
            return
        if row.progress and progress:
            write_atomically(self.row_folder(row.spec) / PROGRESS_FILE, row.progress.model_dump_json())

    def _download_growing_files(self, rows: Iterable[TrackedRow]) -> None:
        folders = [(f"{self._remote_folder}/{row.job_spec.row_folder}", self.row_folder(row.spec)) for row in rows]
        download_growing_files(self._shell, folders, GROWING_FILES)

    def _finish(self, row: TrackedRow) -> None:
        """Download the row's folder; write a result if the job has written none."""
        local, spec = self.row_folder(row.spec), row.spec
        if row.script_started:
            remote = f"{self._remote_folder}/{row.job_spec.row_folder}"
            download_folder(self._shell, remote, local, lambda transfer: self._view.show_download(spec, transfer))
            self._record_fetched(row)
        result = self._result(row, local)
        (local / SUBMISSION_FILE).unlink(missing_ok=True)
        self.rows.remove(row)
        self._remaining.add_ended(spec.row, row.elapsed_s, result)
        self._view.report_end(spec, result)

    def _record_fetched(self, row: TrackedRow) -> None:
        """Record on the cluster, in the folders of all jobs of the row, that this machine has the row's results."""
        jobs = row.job_spec.folder.removesuffix(row.job_spec.attempt) + "?" * len(row.job_spec.attempt)
        mark = f'for job in {jobs}; do : > "$job/{FETCHED_FILE}"; done'
        self._shell.run(f"cd {self._remote_folder} && {mark}", check=False, repeatable=True)

    def _result(self, row: TrackedRow, local: Path) -> Result:
        if (local / RESULT_FILE).exists():
            try:
                return read_result(local / RESULT_FILE)
            except InputError as problem:
                return self._write_failed_result(row, local, "error", str(problem))
        if not row.script_started and (reason := self._staging.download_failure(row.spec)):
            return self._write_failed_result(row, local, "error", reason)
        timed_out = row.job is not None and row.job.state == "TIMEOUT"
        return self._write_failed_result(row, local, "timeout" if timed_out else "error", self._failure_reason(row))

    def _failure_reason(self, row: TrackedRow) -> str:
        """Return why the job has written no result: its state, with an error line of its output or Slurm's reason."""
        reason = f"job ended as {row.job.state}" if row.job else "job is no longer known to Slurm"
        if not row.script_started or row.exit_code not in (None, 0):
            output = self._shell.run(
                f"tail -n 50 {self._remote_folder}/{row.job_spec.folder}/{OUTPUT_FILE}", check=False
            ).out
            return f"{reason}: {error_line(output, '')}" if output.strip() else reason
        return f"{reason} ({row.job.reason})" if row.job and row.job.reason != "None" else reason

    def _write_failed_result(self, row: TrackedRow, local: Path, outcome: Outcome, reason: str) -> Result:
        if row.progress:
            write_atomically(local / PROGRESS_FILE, row.progress.model_dump_json())
        node = self._cluster.profile.node
        device = device_of(node, node.gpus[: row.spec.settings.gpus])
        return write_failed_result(local, row.spec, device, outcome, reason, row.elapsed_s)
