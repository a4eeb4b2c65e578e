"""Stage artifacts (weights, tokenizers, texts and data) on the cluster: one job downloads each, and its rows wait.

Later commands recognize the job of an artifact by its comment. So two jobs never download the same artifact at a time,
and a complete artifact is not downloaded again.
"""

import shlex
import signal
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.dataset import DataSet
from experiments.inputs.requirements import Artifact, required_artifacts
from experiments.runners.progress import View
from experiments.runners.slurm import job_script, queue
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.layout import OUTPUT_FILE, PATHS_FILE, SCRIPT_FILE
from experiments.suites.row_spec import RowSpec
from provision.errors import CommandFailed
from provision.temporary import TemporaryFolder

NAME_PREFIX = "fetch/"
UPLOAD_TIMEOUT_S = 24 * 3600.0


class Staging:
    """Stages artifacts on ``cluster``. data: the run's data; None if the cluster does not need them."""

    def __init__(self, cluster: Cluster, view: View, data: DataSet | None = None) -> None:
        self._cluster = cluster
        self._shell = cluster.shell
        self._view = view
        self._data = data.artifact if data else None
        self._upload = (data.user_path, data.artifact) if data and data.user_path and data.artifact else None
        self._job_ids: dict[Artifact, str | None] = {}
        self._jobs: Sequence[queue.Job] = ()
        self._last_lines: Mapping[str, str] = {}

    def artifacts(self, spec: RowSpec) -> tuple[Artifact, ...]:
        """Return the artifacts that the row reads."""
        return required_artifacts(spec, self._data)

    def begin(self, spec: RowSpec) -> tuple[str, ...]:
        """Start the missing downloads of the row's artifacts; return the ids of all jobs that download its artifacts.

        User-supplied data are uploaded first. An upload may take longer than Slurm keeps the record of an ended job, so
        a job that was submitted before the upload could be unknown after it.
        """
        if self._upload and self.artifacts(spec):
            self._upload_data(*self._upload)
            self._upload = None
        for artifact in self.artifacts(spec):
            if artifact not in self._job_ids:
                self._job_ids[artifact] = self._running_job(artifact) or self._submit(artifact)
        return tuple(job for artifact in self.artifacts(spec) if (job := self._job_ids[artifact]))

    def status_commands(self, specs: Iterable[RowSpec]) -> list[str]:
        """Return shell commands that print the progress of the downloads for ``specs``; ``update`` reads the output."""
        artifacts = dict.fromkeys(artifact for spec in specs for artifact in self.artifacts(spec))
        return [
            f"printf '%s|%s\\n' {artifact.key} \"$({self._last_line_command(artifact)})\"" for artifact in artifacts
        ]

    def update(self, jobs: Sequence[queue.Job], output: str) -> None:
        """Update the state of all downloads from the jobs in the queue and the output of ``status_commands``."""
        lines = [line.partition("|") for line in output.split("\n")]
        self._jobs, self._last_lines = jobs, {key: _visible_text(text) for key, _, text in lines}
        completed = {job.id for job in jobs if job.state == "COMPLETED"}
        for artifact in [artifact for artifact, job in self._job_ids.items() if job in completed]:
            self._view.print_line(f"{artifact}: downloaded")
            self._job_ids[artifact] = None

    def pending_downloads(self, spec: RowSpec) -> str:
        """Describe the downloads for which the row waits, with their progress; '' if the row waits for none."""
        artifacts = [
            artifact
            for artifact in self.artifacts(spec)
            if (job := self._latest(artifact, self._jobs)) and not job.has_ended
        ]
        return ", ".join(f"{artifact} {self._last_lines.get(artifact.key, '')}".strip() for artifact in artifacts)

    def download_failure(self, spec: RowSpec) -> str | None:
        """Describe which download for the row failed, and why; None if no download failed."""
        for artifact in self.artifacts(spec):
            job = self._latest(artifact, self._jobs)
            if job and job.has_ended and job.state != "COMPLETED":
                return f"{artifact} could not be downloaded: {self._failure_reason(artifact, job)}"
        return None

    def _failure_reason(self, artifact: Artifact, job: queue.Job) -> str:
        output = self._shell.run(self._last_line_command(artifact), check=False, repeatable=True).out
        if job.state == "TIMEOUT":
            return f"did not end within {job_script.STAGING_LIMIT_MIN} min"
        return _visible_text(output) or f"job ended as {job.state}"

    def _staging_folder(self, artifact: Artifact) -> str:
        return self._cluster.layout.staging_folder(artifact.key)

    def _last_line_command(self, artifact: Artifact) -> str:
        return f"tail -n 1 {shlex.quote(f'{self._staging_folder(artifact)}/{OUTPUT_FILE}')} 2> /dev/null"

    def _job_comment(self, artifact: Artifact) -> str:
        return f"{queue.COMMENT_PREFIX} fetches {artifact.key} to {self._cluster.cache}"

    def _latest(self, artifact: Artifact, jobs: Iterable[queue.Job]) -> queue.Job | None:
        """Return the latest job that downloads ``artifact``."""
        candidates = [job for job in jobs if job.comment == self._job_comment(artifact)]
        return max(candidates, key=lambda job: int(job.id), default=None)

    def _running_job(self, artifact: Artifact) -> str | None:
        job = self._latest(artifact, queue.list_jobs(self._shell))
        if job is None or job.has_ended:
            return None
        self._view.print_line(f"{artifact}: download job {job.id} is already in the queue")
        return job.id

    def _submit(self, artifact: Artifact) -> str | None:
        """Submit the job that downloads ``artifact``; return its id, None if the artifact is complete."""
        if self._is_complete(artifact):
            return None
        path = f"{self._staging_folder(artifact)}/{SCRIPT_FILE}"
        name = f"{NAME_PREFIX}{artifact.kind}/{artifact.name.partition('?')[0]}"
        script = self._cluster.scripts.staging_script(artifact, name, self._job_comment(artifact))
        self._shell.put(script.encode(), path)
        try:
            job_id = queue.submit(self._shell, path, lambda: self._running_job(artifact))
        except CommandFailed as problem:
            profile = self._cluster.profile.name
            raise InputError(f"--profile {profile}: job to download {artifact}: {problem}") from None
        self._view.print_line(f"{artifact}: download job {job_id} submitted")
        return job_id

    def _is_complete(self, artifact: Artifact) -> bool:
        """Return whether the artifact was downloaded and all its files still exist."""
        paths = shlex.quote(f"{self._staging_folder(artifact)}/{PATHS_FILE}")
        command = f"test -s {paths} && xargs -d '\\n' -a {paths} ls -d -L -- > /dev/null"
        return self._shell.run(command, check=False, repeatable=True).code == 0

    def _upload_data(self, user_path: Path, artifact: Artifact) -> None:
        """Upload the user's archive or folder, unless the cluster already has it. Ctrl-C aborts the upload at once."""
        uploaded = self._shell.run(f"test -e {shlex.quote(artifact.name)}", check=False, repeatable=True).code == 0
        if uploaded or self._is_complete(artifact):
            return
        with as_archive(user_path) as archive:
            self._view.print_line(f"{user_path}: uploading {archive.stat().st_size / 1e6:.0f} MB")
            handler = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                self._shell.put(archive, artifact.name, timeout_s=UPLOAD_TIMEOUT_S)
            finally:
                signal.signal(signal.SIGINT, handler)


def jobs_to_cancel(jobs: Sequence[queue.Job], prefix: str) -> list[queue.Job]:
    """Return the unfinished jobs whose names begin with ``prefix``, and the downloads if no other row has a job."""
    active = [job for job in jobs if job.comment.startswith(f"{queue.COMMENT_PREFIX} ") and not job.has_ended]
    rows = [job for job in active if job.name.startswith(prefix)]
    downloads = [job for job in active if job.name.startswith(NAME_PREFIX)]
    return [*rows, *downloads] if len(rows) + len(downloads) == len(active) else rows


@contextmanager
def as_archive(path: Path) -> Iterator[Path]:
    """Yield ``path`` if it is an archive; if it is a folder, yield a temporary archive of the folder."""
    if path.is_file():
        yield path
        return
    with TemporaryFolder("data") as folder:
        packed = folder / "data.tar"
        with tarfile.open(packed, mode="w", dereference=True) as archive:
            archive.add(path, arcname=".")
        yield packed


def _visible_text(line: str) -> str:
    """Return the visible text of a line: for a progress bar, which overwrites itself, its last state."""
    return line.strip().rpartition("\r")[2]
