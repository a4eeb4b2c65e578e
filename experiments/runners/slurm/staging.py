"""What rows need is brought to a cluster by jobs of their own, one a need, which the rows that need it wait for.

A job is found again by its name, so that none is begun beside another; what is there already is not fetched again.
"""

import shlex
import signal
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.dataset import DataSet
from experiments.inputs.requirements import Need, needs_of
from experiments.runners.progress import View
from experiments.runners.slurm import queue
from experiments.runners.slurm.cluster import FETCH_MIN, OUT, PATHS_FILE, SCRIPT, Cluster
from experiments.suites.row_spec import RowSpec
from provision.errors import CommandFailed

PREFIX = "fetch/"
PUT_S = 24 * 3600.0


class Fetching:
    """Fetches to ``cluster`` what rows need; ``data``: that of the run, where it is not there from the start."""

    def __init__(self, cluster: Cluster, view: View, data: DataSet | None = None) -> None:
        self._cluster = cluster
        self._shell = cluster.shell
        self._view = view
        self._data = data.need if data else None
        self._own = (data.own, data.need) if data and data.own and data.need else None
        self._begun: dict[Need, str | None] = {}
        self._listed: Sequence[queue.Job] = ()
        self._said: Mapping[str, str] = {}

    def needs(self, spec: RowSpec) -> tuple[Need, ...]:
        return needs_of(spec, self._data)

    def begin(self, spec: RowSpec) -> tuple[str, ...]:
        """The ids of the jobs that the row has to wait for; what nobody fetches yet is begun to be fetched.

        The person's own data is put there first: that may take longer than Slurm remembers a job.
        """
        if self._own and self.needs(spec):
            self._put(*self._own)
            self._own = None
        for need in self.needs(spec):
            if need not in self._begun:
                self._begun[need] = self._under_way(need) or self._submitted(need)
        return tuple(job for need in self.needs(spec) if (job := self._begun[need]))

    def questions(self, specs: Iterable[RowSpec]) -> list[str]:
        """Lines that print how far it is, by need."""
        needs = dict.fromkeys(need for spec in specs for need in self.needs(spec))
        return [f"printf '%s|%s\\n' {need.key} \"$({self._last_line(need)})\"" for need in needs]

    def hear(self, jobs: Sequence[queue.Job], said: str) -> None:
        """What Slurm and ``questions`` say now."""
        lines = [line.partition("|") for line in said.split("\n")]
        self._listed, self._said = jobs, {key: _shown(text) for key, _, text in lines}
        done = {job.id for job in jobs if job.state == "COMPLETED"}
        for need in [need for need, job in self._begun.items() if job in done]:
            self._view.says(f"{need}: fetched")
            self._begun[need] = None

    def waits(self, spec: RowSpec) -> str:
        """For what the row waits still, and how far that is."""
        waiting = [need for need in self.needs(spec) if (job := self._latest(need, self._listed)) and not job.over]
        return ", ".join(f"{need} {self._said.get(need.key, '')}".strip() for need in waiting)

    def why(self, spec: RowSpec) -> str | None:
        """Why the row could not begin: what could not be fetched, and the reason; None where that is not why."""
        for need in self.needs(spec):
            job = self._latest(need, self._listed)
            if job and job.over and job.state != "COMPLETED":
                limit = f"no end after {FETCH_MIN} min"
                said = self._shell.run(self._last_line(need), check=False, repeatable=True).out
                reason = limit if job.state == "TIMEOUT" else _shown(said) or f"its job ended as {job.state}"
                return f"{need} could not be fetched: {reason}"
        return None

    def _last_line(self, need: Need) -> str:
        return f"tail -n 1 {shlex.quote(f'{self._cluster.fetched(need)}/{OUT}')} 2> /dev/null"

    def _comment(self, need: Need) -> str:
        return f"{queue.COMMENT_PREFIX} fetches {need.key} to {self._cluster.cache}"

    def _latest(self, need: Need, jobs: Iterable[queue.Job]) -> queue.Job | None:
        """The job that fetches ``need``, the last one where there were several."""
        own = [job for job in jobs if job.comment == self._comment(need)]
        return max(own, key=lambda job: int(job.id), default=None)

    def _under_way(self, need: Need) -> str | None:
        job = self._latest(need, queue.jobs(self._shell))
        if job is None or job.over:
            return None
        self._view.says(f"{need}: fetched there by job {job.id} already")
        return job.id

    def _submitted(self, need: Need) -> str | None:
        """The job that fetches it; None where all of it is there."""
        if self._is_there(need):
            return None
        path = f"{self._cluster.fetched(need)}/{SCRIPT}"
        script = self._cluster.fetching(need, f"{PREFIX}{need.kind}/{need.name.partition('?')[0]}", self._comment(need))
        self._shell.put(script.encode(), path)
        try:
            number = queue.submit(self._shell, path, lambda: self._under_way(need))
        except CommandFailed as problem:
            raise InputError(f"--profile {self._cluster.profile.name}: to fetch {need}: {problem}") from None
        self._view.says(f"{need}: fetched there by job {number}")
        return number

    def _is_there(self, need: Need) -> bool:
        """Whether it was fetched, and all of it is there still."""
        there = shlex.quote(f"{self._cluster.fetched(need)}/{PATHS_FILE}")
        command = f"test -s {there} && xargs -d '\\n' -a {there} ls -d -L -- > /dev/null"
        return self._shell.run(command, check=False, repeatable=True).code == 0

    def _put(self, own: Path, need: Need) -> None:
        """Have the person's archive, or a folder as one, there under its SHA-256. Ctrl-C breaks that off at once."""
        archived = self._shell.run(f"test -e {shlex.quote(need.name)}", check=False, repeatable=True).code == 0
        if archived or self._is_there(need):
            return
        with packed(own) as archive:
            self._view.says(f"{own}: put there, {archive.stat().st_size / 1e6:.0f} MB")
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                self._shell.put(archive, need.name, timeout_s=PUT_S)
            finally:
                signal.signal(signal.SIGINT, before)


def ours(jobs: Sequence[queue.Job], prefix: str) -> list[queue.Job]:
    """The jobs of that prefix that are not over; and those that fetch, where no other job can wait for them."""
    left = [job for job in jobs if job.comment.startswith(f"{queue.COMMENT_PREFIX} ") and not job.over]
    own = [job for job in left if job.name.startswith(prefix)]
    fetch = [job for job in left if job.name.startswith(PREFIX)]
    return [*own, *fetch] if len(own) + len(fetch) == len(left) else own


def _shown(line: str) -> str:
    """What is to be seen of a line: of a progress bar, which writes over itself, its last state."""
    return line.strip().rpartition("\r")[2]


@contextmanager
def packed(own: Path) -> Iterator[Path]:
    """The archive itself, or a folder's contents as one."""
    if own.is_file():
        yield own
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w", dereference=True) as archive:
            archive.add(own, arcname=".")
        file.flush()
        yield Path(file.name)
