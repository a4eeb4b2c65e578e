"""Slurm's queue as it is printed."""

from experiments.runners.slurm.queue import Job, parse_jobs


def test_jobs_are_read_whatever_their_comments_say():
    text = "7|RUNNING|None|run/lab/a|llm-testbed x y\nslurm says something\n8|TIMEOUT|TimeLimit|b|a|b\n"
    assert parse_jobs(text) == [
        Job("7", "RUNNING", "None", "run/lab/a", "llm-testbed x y"),
        Job("8", "TIMEOUT", "TimeLimit", "b", "a|b"),
    ]
    assert [job.ended for job in parse_jobs(text)] == [False, True]
