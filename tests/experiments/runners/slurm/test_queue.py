"""Parsing of the queue that Slurm prints."""

from experiments.runners.slurm.queue import Job, parse_jobs


def test_jobs_with_any_comment_are_parsed():
    text = "7|RUNNING|None|run/lab/a|llm-testbed x y\nslurm says something\n8|TIMEOUT|TimeLimit|b|a|b\n"
    assert parse_jobs(text) == [
        Job("7", "RUNNING", "None", "run/lab/a", "llm-testbed x y"),
        Job("8", "TIMEOUT", "TimeLimit", "b", "a|b"),
    ]
    assert [job.ended for job in parse_jobs(text)] == [False, True]
