"""Slurm over a shell: jobs are submitted, looked at and cancelled. What came of a row is never read from here."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from provision.errors import NotReached
from provision.ssh.shell import Shell

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
UNDER_WAY = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED")
FORMAT = "%i|%T|%r|%j|%k"
COMMENT_PREFIX = "llm-testbed"
"""What the comments of our jobs begin with."""
LOOK = f"squeue --me --states=all --noheader --format={shlex.quote(FORMAT)}"


@dataclass(frozen=True)
class Job:
    """A job as Slurm has it: state and reason are its words; comment is what it was submitted with."""

    id: str
    state: str
    reason: str
    name: str
    comment: str

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def over(self) -> bool:
        return self.state not in (*WAITING, *UNDER_WAY)


def submit(shell: Shell, script: str, found: Callable[[], str | None]) -> str:
    """Submit the script in that file; the job's id.

    Where the line is cut over it, ``found`` says the id of the job that was submitted all the same, if one was.
    CommandFailed where Slurm refuses it.
    """
    command = f"sbatch --parsable {shlex.quote(script)}"
    try:
        said = shell.run(command).out
    except NotReached:
        said = found() or shell.run(command).out
    return said.strip().split(";")[0]


def jobs_in(text: str) -> list[Job]:
    """The jobs in what LOOK prints."""
    return [Job(*line.split("|", 4)) for line in text.splitlines() if line.count("|") >= 4]


def jobs(shell: Shell) -> list[Job]:
    """One's own jobs, those included that ended a short while ago."""
    return jobs_in(shell.run(LOOK, repeatable=True).out)


def cancel(shell: Shell, ids: Iterable[str]) -> None:
    """Cancel jobs; those that have ended already are none the worse for it."""
    if named := list(ids):
        shell.run(f"scancel --quiet {shlex.join(named)}", repeatable=True, check=False)
