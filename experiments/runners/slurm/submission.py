"""Record the job of a row in job.json and in the job's comment, so that a later command recognizes the job."""

from pathlib import Path

from pydantic import ValidationError

from experiments.results.schema import Record
from experiments.runners.slurm import queue
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from provision.files import read_bytes

SUBMISSION_FILE = "job.json"


class Submission(Record):
    """What was submitted for a row (job.json).

    attempt: a random id, which distinguishes this job from other jobs of the row. job: Slurm's id of the job; None
    until Slurm has returned it.
    """

    attempt: str
    fingerprint: str
    job: str | None = None


def write_submission(row_folder: Path, spec: RowSpec, attempt: str, job: str | None = None) -> None:
    """Write job.json; create the row's folder if it is missing."""
    row_folder.mkdir(parents=True, exist_ok=True)
    submission = Submission(attempt=attempt, fingerprint=spec.fingerprint, job=job)
    write_atomically(row_folder / SUBMISSION_FILE, submission.model_dump_json())


def read_submission(row_folder: Path, spec: RowSpec) -> Submission | None:
    """Return the row's submission if it was made with the settings in ``spec``; None otherwise."""
    try:
        submission = Submission.model_validate_json(read_bytes(row_folder / SUBMISSION_FILE))
    except (OSError, ValidationError):
        return None
    return submission if submission.fingerprint == spec.fingerprint else None


def comment_of(spec: RowSpec, attempt: str) -> str:
    """Return the comment with which a row's job is submitted."""
    return f"{queue.COMMENT_PREFIX} {spec.fingerprint} {attempt}"


def attempt_in(job: queue.Job, spec: RowSpec) -> str | None:
    """Return the attempt of a job that was submitted with the settings of ``spec``; None for any other job."""
    words = job.comment.split()
    if len(words) == 3 and words[:2] == [queue.COMMENT_PREFIX, spec.fingerprint]:
        return words[2]
    return None
