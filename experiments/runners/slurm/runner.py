"""The runner on a cluster: each row is a job of Slurm, which goes on whatever becomes of this program.

What is submitted is noted in the row's folder (job.json) before it is asked for. A later run of the same choices finds
the job by that note, or by its name and comment, and follows it.
"""

import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from experiments.errors import InputError, Interrupted
from experiments.inputs.dataset import DataSet
from experiments.results.run_folder import RunFolder, row_path
from experiments.results.schema import (
    LOG_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    SPEC_FILE,
    TELEMETRY_FILE,
    Outcome,
    Progress,
    Record,
    Result,
    read_result,
)
from experiments.runners.failed_results import write_broken
from experiments.runners.local.runner import GRACE_S, WORKER, emptied, stop_signals
from experiments.runners.plan import Planned
from experiments.runners.progress import State, View
from experiments.runners.slurm import queue
from experiments.runners.slurm.cluster import ENDED, OUT, SCRIPT, STARTED, Cluster, JobSpec
from experiments.runners.slurm.download import glance, pull
from experiments.runners.slurm.staging import Fetching, ours
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from experiments.system.files import write_atomically
from provision.errors import CommandFailed, NotReached

NOTE_FILE = "job.json"
GROWING = (LOG_FILE, TELEMETRY_FILE)
TICK_S = 0.25
PATIENCE_S = 3600.0
LEASE_RESERVE_S = 600.0


class Note(Record):
    """What was submitted for a row; job is None until Slurm has said its number."""

    attempt: str
    fingerprint: str
    job: str | None = None


@dataclass
class Following:
    """A row whose job is followed. ``began`` is of time.monotonic, None before it runs; fetched: what it waits for."""

    job_spec: JobSpec
    job: queue.Job | None
    began: float | None = None
    started: bool = False
    fetched: str = ""
    code: int | None = None
    progress: Progress | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began if self.began is not None else 0.0

    @property
    def over(self) -> bool:
        """It ended well by its own word, else by Slurm's, which says how."""
        return self.code == 0 or self.job is None or self.job.over

    @property
    def state(self) -> State:
        waits = ""
        if self.job and self.job.waits:
            waits = f"queued ({': '.join(filter(None, (self.job.reason, self.fetched)))})"
        return State(self.job_spec.spec, self.elapsed_s, self.progress, waits)


class RemoteRunner:
    """Runs rows on ``cluster`` into ``folder``; see LocalRunner.

    ends_at: when the machines are taken away; what cannot end before is not begun. held: are they still ours? Asked
    when they do not answer. data: that of the run, where it has to be brought there. Rows that need nothing to be
    fetched are begun first.
    """

    def __init__(
        self,
        folder: RunFolder,
        cluster: Cluster,
        view: View,
        worker: str = WORKER,
        grace_s: float = GRACE_S,
        ends_at: datetime | None = None,
        held: Callable[[], bool] = lambda: True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        data: DataSet | None = None,
    ) -> None:
        self._folder = folder
        self._run_id = folder.read_run().run_id
        self._cluster = cluster
        self._shell = cluster.shell
        self._view = view
        self._worker = worker
        self._grace_s = grace_s
        self._ends_at = ends_at
        self._held = held
        self._now = now
        self._fetching = Fetching(cluster, view, data)
        self._rows: list[Following] = []
        self._total = 0

    def run(self, rows: Sequence[Planned]) -> None:
        """Have the rows run there and bring home what comes of them, in the order given as far as the queue allows.

        Raises Interrupted when told to stop, and NotReached when the cluster is not for an hour: jobs go on then, and
        the next run follows them.
        """
        self._total = len(rows)
        self._cluster.prepare(self._folder)
        self._there = self._cluster.run_folder(self._run_id)
        with stop_signals() as told, self._view.alive():
            known = queue.jobs(self._shell)
            for row in sorted(rows, key=lambda row: bool(self._fetching.needs(row.spec))):
                if told:
                    break
                self._begin(row, known)
            self._follow(told)

    def cancel(self) -> list[str]:
        """Cancel the run's jobs; the rows whose jobs those were."""
        prefix = f"{self._run_id}/"
        jobs = ours(queue.jobs(self._shell), prefix)
        queue.cancel(self._shell, [job.id for job in jobs])
        return [job.name.rpartition("/")[2] for job in jobs if job.name.startswith(prefix)]

    def _follow(self, told: list[int]) -> None:
        silent_since: float | None = None
        due = 0.0
        while self._rows:
            if told:
                self._say_how_to_return()
                raise Interrupted(signal.Signals(told[0]).name)
            if time.monotonic() >= due:
                try:
                    self._look()
                    silent_since = None
                except NotReached as problem:
                    silent_since = self._handle_unreachable(problem, silent_since)
                due = time.monotonic() + self._cluster.profile.poll_s
            if self._lease_ends():
                self._collect_before_lease_end()
            self._show()
            if self._rows:
                time.sleep(TICK_S)

    def _handle_unreachable(self, problem: NotReached, silent_since: float | None) -> float:
        """The cluster is not reached: say so once, and go on until patience ends, or the machines are gone."""
        if not self._held():
            self._abandon_rows("not finished, the lease is over or was deleted")
            return time.monotonic()
        if silent_since is None:
            self._view.warns(f"{problem}; the jobs go on there, it is tried again")
            return time.monotonic()
        if time.monotonic() - silent_since > PATIENCE_S:
            raise problem
        return silent_since

    def _say_how_to_return(self) -> None:
        names = ", ".join(row.job_spec.spec.row for row in self._rows)
        self._view.says(
            f"{len(self._rows)} job(s) go on at {self._shell.where}: {names}; "
            "the same command returns to them, with --cancel it ends them"
        )

    def _begin(self, planned: Planned, known: Sequence[queue.Job]) -> None:
        """Follow the row's job where there is one, else submit it."""
        spec = planned.spec
        local = self._folder.row(spec)
        name = self._name(spec)
        for job in known:
            if job.name == name and not job.over and _fingerprint(job) == spec.fingerprint:
                self._note(local, spec, job.comment.split()[2], job.id)
                self._view.starts(spec, f"its job {job.id} is there already")
                self._rows.append(Following(self._order(spec, job.comment.split()[2]), job))
                return
        queue.cancel(self._shell, [job.id for job in known if job.name == name and not job.over])
        note = _noted(local, spec)
        if note and self._was_begun(spec, note):
            self._view.starts(spec, "its job has ended since")
            self._rows.append(Following(self._order(spec, note.attempt), None, started=True))
            return
        if not self._in_time(spec):
            self._view.warns(f"{spec.row}: not begun, it may take until after the machines are given back")
            return
        self._submit(planned, note.attempt if note else secrets.token_hex(4))

    def _submit(self, planned: Planned, attempt: str) -> None:
        spec = planned.spec
        local = emptied(self._folder.row(spec))
        write_atomically(local / SPEC_FILE, spec.model_dump_json(indent=2))
        self._note(local, spec, attempt)
        job_spec = replace(self._order(spec, attempt), after=self._fetching.begin(spec))
        script = self._cluster.script(job_spec, self._run_id, self._name(spec), _comment(spec, attempt))
        path = f"{self._there}/{job_spec.place}/{SCRIPT}"
        self._shell.put(script.encode(), path)
        try:
            number = queue.submit(self._shell, path, lambda: self._found(job_spec))
        except CommandFailed as problem:
            raise InputError(f"--profile {self._cluster.profile.name}: row {spec.row}: {problem}") from None
        self._note(local, spec, attempt, number)
        self._view.starts(spec, f"{planned.why}; job {number}")
        self._rows.append(Following(job_spec, queue.Job(number, "PENDING", "", self._name(spec), "")))

    def _found(self, job_spec: JobSpec) -> str:
        """The number of the job of that order, where Slurm has it."""
        comment = _comment(job_spec.spec, job_spec.attempt)
        return next((job.id for job in queue.jobs(self._shell) if job.comment == comment), "")

    def _was_begun(self, spec: RowSpec, note: Note) -> bool:
        mark = f"{self._there}/{self._order(spec, note.attempt).place}/{STARTED}"
        return self._shell.run(f"test -e {mark}", check=False, repeatable=True).code == 0

    def _look(self) -> None:
        """One question for all rows; those whose job is over are brought home."""
        lines = [queue.LOOK, "echo ==", f"cd {self._there}"]
        for row in self._rows:
            place, kept = row.job_spec.place, f"{row.job_spec.row}/{PROGRESS_FILE}"
            texts = " ".join(
                f'"$(cat {path} 2> /dev/null)"' for path in (f"{place}/{STARTED}", f"{place}/{ENDED}", kept)
            )
            lines.append(f"printf '%s|%s|%s|%s\\n' {row.job_spec.attempt} {texts}")
        lines += ["echo ==", *self._fetching.questions(row.job_spec.spec for row in self._rows if not row.started)]
        listed, marks, fetched = self._shell.run("\n".join(lines), repeatable=True).out.split("==\n", 2)
        jobs = {job.id: job for job in queue.jobs_in(listed)}
        self._fetching.hear([*jobs.values()], fetched)
        told = {line.split("|", 3)[0]: line.split("|", 3)[1:] for line in marks.splitlines() if line.count("|") >= 3}
        for row in self._rows:
            self._update_status(row, jobs, told.get(row.job_spec.attempt, ["", "", ""]))
        under_way = [row for row in self._rows if row.began is not None and not row.over]
        glance(self._shell, [(f"{self._there}/{row.job_spec.row}", self._local(row)) for row in under_way], GROWING)
        for row in [row for row in self._rows if row.over]:
            self._finish(row)

    def _update_status(self, row: Following, jobs: dict[str, queue.Job], told: list[str]) -> None:
        started, ended, progress = told
        row.started = row.started or bool(started)
        row.job = jobs.get(row.job.id) if row.job else None
        row.fetched = self._fetching.waits(row.job_spec.spec) if row.job and row.job.waits else ""
        row.code = int(ended) if ended else None
        if row.began is None and row.job and not row.job.waits:
            row.began = time.monotonic()
        try:
            row.progress = Progress.model_validate_json(progress) if progress else row.progress
        except ValidationError:
            return

    def _finish(self, row: Following) -> None:
        """Bring the row home; a job that left no result is one that says so."""
        local, spec = self._local(row), row.job_spec.spec
        if row.started:
            pull(
                self._shell,
                f"{self._there}/{row.job_spec.row}",
                local,
                lambda arrived: self._view.brings(spec, arrived),
            )
        result = self._result(row, local)
        (local / NOTE_FILE).unlink(missing_ok=True)
        self._rows.remove(row)
        self._view.ends(spec, result)

    def _result(self, row: Following, local: Path) -> Result:
        if (local / RESULT_FILE).exists():
            try:
                return read_result(local / RESULT_FILE)
            except InputError as problem:
                return self._broken(row, local, "error", str(problem))
        if not row.started and (why := self._fetching.why(row.job_spec.spec)):
            return self._broken(row, local, "error", why)
        state = row.job.state if row.job else "no longer known to Slurm"
        outcome: Outcome = "timeout" if state == "TIMEOUT" else "error"
        if not row.started or row.code not in (None, 0):
            said = self._shell.run(f"tail -n 1 {self._there}/{row.job_spec.place}/{OUT}", check=False).out.strip()
            reason = f"its job ended as {state}" + (f": {said}" if said else "")
        else:
            reason = f"its job ended as {state}" + (
                f" ({row.job.reason})" if row.job and row.job.reason != "None" else ""
            )
        return self._broken(row, local, outcome, reason)

    def _broken(self, row: Following, local: Path, outcome: Outcome, reason: str) -> Result:
        if row.progress:
            write_atomically(local / PROGRESS_FILE, row.progress.model_dump_json())
        node, spec = self._cluster.profile.node, row.job_spec.spec
        return write_broken(local, spec, node, node.gpus[: spec.settings.devices], outcome, reason, row.elapsed_s)

    def _in_time(self, spec: RowSpec) -> bool:
        if self._ends_at is None:
            return True
        needed = timedelta(seconds=self._order(spec, "").limit_s + LEASE_RESERVE_S)
        return self._now() + needed <= self._ends_at

    def _lease_ends(self) -> bool:
        return self._ends_at is not None and self._now() + timedelta(seconds=LEASE_RESERVE_S) >= self._ends_at

    def _collect_before_lease_end(self) -> None:
        """The machines are taken away: what there is comes home, the rest is cancelled and is to be run again."""
        queue.cancel(self._shell, [row.job.id for row in self._rows if row.job])
        begun = [row for row in self._rows if row.started]
        glance(self._shell, [(f"{self._there}/{row.job_spec.row}", self._local(row)) for row in begun], GROWING)
        self._abandon_rows("cancelled, the machines are given back")

    def _abandon_rows(self, why: str) -> None:
        """The rest is to be run again, elsewhere."""
        for row in self._rows:
            (self._local(row) / NOTE_FILE).unlink(missing_ok=True)
            self._view.warns(f"{row.job_spec.spec.row}: {why}")
        self._rows = []

    def _show(self) -> None:
        waiting = sum(1 for row in self._rows if row.job and row.job.waits)
        states = [row.state for row in self._rows]
        self._view.shows(states, self._total - len(self._rows), self._total, None if waiting else self._left_s())

    def _left_s(self) -> float | None:
        lefts = [row.progress.left_s for row in self._rows if row.progress and row.progress.left_s is not None]
        return max(lefts) if lefts and len(lefts) == len(self._rows) else None

    def _order(self, spec: RowSpec, attempt: str) -> JobSpec:
        return JobSpec(spec, attempt, self._worker, self._grace_s)

    def _name(self, spec: RowSpec) -> str:
        return f"{self._run_id}/{row_path(spec.suite, spec.row)}"

    def _local(self, row: Following) -> Path:
        return self._folder.path / row.job_spec.row

    def _note(self, local: Path, spec: RowSpec, attempt: str, job: str | None = None) -> None:
        local.mkdir(parents=True, exist_ok=True)
        note = Note(attempt=attempt, fingerprint=spec.fingerprint, job=job)
        write_atomically(local / NOTE_FILE, note.model_dump_json())


def by_claims_covered(rows: Sequence[Planned], suite: Suite) -> list[Planned]:
    """The rows in the order in which they are submitted: those first that the most statements need to be evaluated."""

    def needed(planned: Planned) -> int:
        named = [{name for check in claim.checks for name in (check.row, check.over_row)} for claim in suite.claims]
        expected = suite.row(planned.row).expect
        own = (expected.outcome is not None) + len(expected.reference_values)
        return own + sum(planned.row in rows for rows in named)

    return sorted(rows, key=needed, reverse=True)


def _comment(spec: RowSpec, attempt: str) -> str:
    return f"{queue.COMMENT_PREFIX} {spec.fingerprint} {attempt}"


def _fingerprint(job: queue.Job) -> str:
    """The spec's fingerprint that the job was submitted with; '' where the job is none of ours."""
    words = job.comment.split()
    return words[1] if len(words) == 3 and words[0] == queue.COMMENT_PREFIX else ""


def _noted(local: Path, spec: RowSpec) -> Note | None:
    """What was noted of the row as it is set now; None for other settings."""
    try:
        note = Note.model_validate_json((local / NOTE_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    return note if note.fingerprint == spec.fingerprint else None
