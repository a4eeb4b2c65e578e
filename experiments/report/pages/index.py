"""Write index.html for a folder of runs: one line per run, newest first."""

import os
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from experiments.report.identity import format_date
from experiments.report.pages.environment import render_template
from experiments.report.words import STATUSES
from experiments.results.run_folder import PAGE_FILE, RUN_FILE, VERDICT_FILE, Run
from experiments.results.verdicts import Evaluation, Status
from provision.files import read_bytes

INDEX_FILE = "index.html"


class RunEntry(NamedTuple):
    """One run of the index.

    link: address of the run's report; empty if there is no report. counts: number of statements by status; None if the
    run has not been evaluated.
    """

    run: Run
    date: str
    link: str
    counts: dict[Status, int] | None


def write_index(folder: Path) -> Path:
    """Write index.html with all runs in ``folder`` and its subfolders; return the path of index.html.

    Reads run.json and verdict.json only. A run that cannot be read is left out.
    """
    paths = [path for pattern in (f"*/{RUN_FILE}", f"*/*/{RUN_FILE}") for path in folder.glob(pattern)]
    entries = [entry for path in paths if not path.parent.is_symlink() if (entry := _run_entry(path.parent, folder))]
    entries.sort(key=lambda entry: (entry.run.started_at, entry.run.run_id), reverse=True)
    target = folder / INDEX_FILE
    partial = folder / f".{INDEX_FILE}.{os.getpid()}"  # several runs may end at once
    partial.write_text(render_template("index.html", runs=entries, statuses=STATUSES))
    partial.replace(target)
    return target


def _run_entry(run_folder: Path, folder: Path) -> RunEntry | None:
    try:
        run = Run.model_validate_json(read_bytes(run_folder / RUN_FILE))
    except (OSError, ValidationError):
        return None
    page = run_folder / PAGE_FILE
    link = page.relative_to(folder).as_posix() if page.is_file() else ""
    return RunEntry(run, format_date(run.started_at), link, _counts(run_folder))


def _counts(run_folder: Path) -> dict[Status, int] | None:
    try:
        evaluation = Evaluation.model_validate_json(read_bytes(run_folder / VERDICT_FILE))
    except (OSError, ValidationError):
        return None
    return {status: evaluation.count(status) for status in STATUSES}
