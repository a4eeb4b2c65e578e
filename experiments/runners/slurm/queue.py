"""Submit, list and cancel jobs in Slurm's queue. The outcome of a row comes from its result, never from the queue."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from provision.errors import NotReached
from provision.ssh.shell import Shell

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED")
FORMAT = "%i|%T|%r|%j|%k"
COMMENT_PREFIX = "llm-testbed"
"""First word of the comments of this program's jobs."""
LIST_JOBS = f"squeue --me --states=all --noheader --format={shlex.quote(FORMAT)}"


@dataclass(frozen=True)
class Job:
    """A job as squeue lists it. comment: the comment with which the job was submitted."""

    id: str
    state: str
    reason: str
    name: str
    comment: str

    @property
    def is_waiting(self) -> bool:
        """Return whether the job waits to start."""
        return self.state in WAITING

    @property
    def has_ended(self) -> bool:
        """Return whether the job has ended, for any reason."""
        return self.state not in (*WAITING, *RUNNING)


def submit(shell: Shell, script: str, find_submitted: Callable[[], str | None]) -> str:
    """Submit the script file; return the id of the job.

    find_submitted: called if the connection drops during the submission; returns the id of the job, None or '' if Slurm
    does not have the job, which is then submitted again. Raises CommandFailed if Slurm rejects the job.
    """
    command = f"sbatch --parsable {shlex.quote(script)}"
    try:
        output = shell.run(command).out
    except NotReached:
        output = find_submitted() or shell.run(command).out
    return output.strip().split(";")[0]


def parse_jobs(text: str) -> list[Job]:
    """Return the jobs in the output of LIST_JOBS."""
    return [Job(*line.split("|", 4)) for line in text.splitlines() if line.count("|") >= 4]


def list_jobs(shell: Shell) -> list[Job]:
    """Return the user's jobs, including those that ended recently."""
    return parse_jobs(shell.run(LIST_JOBS, repeatable=True).out)


def cancel(shell: Shell, ids: Iterable[str]) -> None:
    """Cancel the jobs with these ids. Jobs that have ended are ignored."""
    if jobs := list(ids):
        shell.run(f"scancel --quiet {shlex.join(jobs)}", repeatable=True, check=False)
