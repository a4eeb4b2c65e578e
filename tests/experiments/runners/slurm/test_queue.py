"""Parsing of the queue that Slurm prints."""

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.runners.slurm.queue import RUNNING, WAITING, Job, cancel, parse_jobs, submit
from provision.errors import NotReached


def test_jobs_with_any_comment_are_parsed():
    text = "7|RUNNING|None|run/lab/a|llm-testbed x y\nslurm says something\n8|TIMEOUT|TimeLimit|b|a|b\n"
    assert parse_jobs(text) == [
        Job("7", "RUNNING", "None", "run/lab/a", "llm-testbed x y"),
        Job("8", "TIMEOUT", "TimeLimit", "b", "a|b"),
    ]
    assert [job.has_ended for job in parse_jobs(text)] == [False, True]


@pytest.mark.parametrize("state", [*WAITING, *RUNNING, "COMPLETED", "NODE_FAIL"])
def test_the_state_of_a_job_tells_whether_it_waits_runs_or_has_ended(state):
    job = Job("7", state, "", "", "")
    assert (job.is_waiting, job.has_ended) == (state in WAITING, state not in (*WAITING, *RUNNING))


class Shell:
    """A shell that records its commands and the option ``check``; an error in ``answers`` is raised."""

    def __init__(self, *answers):
        self.answers, self.commands = list(answers), []

    def run(self, command, check=True, **options):
        self.commands.append((command, check))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(out=answer)


DROPPED = NotReached("dropped")


@pytest.mark.parametrize(
    ("answers", "found", "job", "commands"),
    [(["7;cluster\n"], "", "7", 1), ([DROPPED], "8", "8", 1), ([DROPPED, "9\n"], "", "9", 2)],
)
def test_a_script_is_submitted_again_only_if_no_job_is_found(answers, found, job, commands):
    shell: Any = Shell(*answers)
    assert submit(shell, "it's", lambda: found) == job
    assert shell.commands == [("sbatch --parsable 'it'\"'\"'s'", True)] * commands


def test_jobs_are_cancelled_with_one_command_and_without_jobs_no_command_runs():
    shell: Any = Shell("")
    cancel(shell, [])
    cancel(shell, ["7", "8"])
    assert shell.commands == [("scancel --quiet 7 8", False)]
