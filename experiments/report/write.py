"""Write the verdicts and the report of a run into its folder. Evaluate stored runs again."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run, evaluate_together
from experiments.report.content import build_report
from experiments.report.identity import find_previous_run
from experiments.report.junit import render_junit
from experiments.report.pages.notebook import write_notebook_page
from experiments.report.pages.run import render_report
from experiments.results.run_folder import (
    CHECKSUMS_FILE,
    JUNIT_FILE,
    PAGE_FILE,
    REPORT_FILE,
    VERDICT_FILE,
    RunFolder,
    row_path,
    run_folders,
)
from experiments.results.schema import NOTEBOOK_FILE, Record
from experiments.results.verdict_changes import VerdictChange, verdict_changes
from experiments.results.verdicts import VERDICT_SCHEMA_VERSION, Evaluation
from experiments.suites.yaml_schema import error_message
from experiments.system.files import PARTIAL_SUFFIX, file_sha256, write_atomically
from provision.files import read_bytes, read_text


@dataclass(frozen=True)
class WrittenReport:
    """A report that has been written.

    page: path of report.html. evaluation: the verdicts in the report. changes: statements whose status differs from the
    previous verdict.json.
    """

    page: Path
    evaluation: Evaluation
    changes: tuple[VerdictChange, ...]


class Reevaluation(Record):
    """A stored run, evaluated with the current suites.

    changes: statements whose status differs from the run's verdict.json, if there is one. files_changed: files that are
    missing or differ from the run's SHA256SUMS; None if there is no SHA256SUMS.
    """

    folder: Path
    evaluation: Evaluation
    changes: tuple[VerdictChange, ...] = ()
    files_changed: tuple[str, ...] | None = None


def write_report(folder: RunFolder) -> WrittenReport:
    """Write verdict.json, report.json, junit.xml, report.html, rows' notebook.html and SHA256SUMS into ``folder``.

    Rows without a result are reported as not run. An unreadable verdict.json is replaced. Raises InputError if
    ``folder`` is not the folder of a run, if its suite or one of its rows is unknown, or if a result cannot be read.
    """
    run = folder.read_run()
    suite = folder.suite()
    stored = None
    with suppress(InputError):
        stored = stored_evaluation(folder.path / VERDICT_FILE)
    for row in run.rows:
        if (notebook := folder.path / row_path(run.suite, row) / NOTEBOOK_FILE).is_file():
            write_notebook_page(notebook)
    graded = evaluate_run(suite, folder)
    evaluation = graded.best
    report = build_report(folder, suite, graded, folder.results(), find_previous_run(folder.path, evaluation.run))
    write_atomically(folder.path / VERDICT_FILE, evaluation.model_dump_json(indent=2))
    write_atomically(folder.path / REPORT_FILE, report.model_dump_json(indent=2))
    write_atomically(folder.path / JUNIT_FILE, render_junit(report))
    write_atomically(folder.path / PAGE_FILE, render_report(report))
    write_atomically(folder.path / CHECKSUMS_FILE, folder_checksums(folder.path), errors="surrogateescape")
    return WrittenReport(folder.path / PAGE_FILE, evaluation, _changes(stored, evaluation))


def reevaluate(root: Path, on_unreadable: Callable[[InputError], None] | None = None) -> tuple[Reevaluation, ...]:
    """Evaluate every run at or under ``root`` with the current suites; write nothing.

    ``on_unreadable`` is called with the error of each run that cannot be read. Without ``on_unreadable``, or if this is
    the only run, the error is raised instead. Raises InputError if there is no run at or under ``root``.
    """
    runs = run_folders(root)
    reevaluations = []
    for run in runs:
        try:
            reevaluations.append(_reevaluate(run))
        except InputError as problem:
            if on_unreadable is None or len(runs) == 1:
                raise
            on_unreadable(problem)
    return tuple(reevaluations)


def reevaluate_together(folders: Sequence[Path]) -> Reevaluation:
    """Evaluate several runs of one suite on one card as if they were one run with all their rows; write nothing.

    Statements that compare rows of several runs then have a verdict. Raises InputError if suite or card differ, or
    if a run cannot be read.
    """
    runs = [RunFolder(folder) for folder in folders]
    first = runs[0].read_run()
    for folder in runs[1:]:
        run = folder.read_run()
        if (run.suite, run.card) != (first.suite, first.card):
            raise InputError(
                f"{folder.path}: a run of {run.suite} on {run.card};"
                f" allowed together with {runs[0].path}: runs of {first.suite} on {first.card}"
            )
    changed = [changed_files(folder) for folder in folders]
    return Reevaluation(
        folder=folders[0],
        evaluation=evaluate_together(runs[0].suite(), runs).best,
        files_changed=None
        if None in changed
        else tuple(dict.fromkeys(name for names in changed for name in names or ())),
    )


def _reevaluate(folder: RunFolder) -> Reevaluation:
    evaluation = evaluate_run(folder.suite(), folder).best
    stored = stored_evaluation(folder.path / VERDICT_FILE)
    return Reevaluation(
        folder=folder.path,
        evaluation=evaluation,
        changes=_changes(stored, evaluation),
        files_changed=changed_files(folder.path),
    )


def _changes(stored: Evaluation | None, evaluation: Evaluation) -> tuple[VerdictChange, ...]:
    return verdict_changes(stored.verdicts, evaluation.verdicts) if stored else ()


def stored_evaluation(path: Path) -> Evaluation | None:
    """Return the verdicts in ``path``; None if there is no file. Raises InputError for another schema version."""
    if not path.is_file():
        return None
    try:
        return Evaluation.model_validate_json(read_bytes(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        problem = error_message(error.errors()[0])
        why = f"not verdicts of schema version {VERDICT_SCHEMA_VERSION} ({problem})"
        raise InputError(f"{path}: {why}; `testbed report {path.parent}` writes the file again") from None


def folder_checksums(folder: Path) -> str:
    """Return the SHA-256 of every file in ``folder`` except SHA256SUMS, in the format of ``sha256sum -c``.

    A symbolic link to a file outside the folder is left out, and so are partial files, whose names end with .part: they
    vanish when a write or a download ends, and a killed process leaves them behind.
    """
    resolved = folder.resolve()
    complete = (path for path in folder.rglob("*") if path.suffix != PARTIAL_SUFFIX and path.is_file())
    paths = sorted(path for path in complete if path != folder / CHECKSUMS_FILE)
    inside = [path for path in paths if path.resolve().is_relative_to(resolved)]
    return "".join(_checksum_line(file_sha256(path), path.relative_to(folder).as_posix()) for path in inside)


def _checksum_line(checksum: str, name: str) -> str:
    """Return a line as sha256sum prints it. If the name contains escapes, the line begins with a backslash."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{checksum}  {escaped}\n"


def _checksum_and_name(line: str) -> tuple[str, str]:
    checksum, _, name = line.partition("  ")
    if not checksum.startswith("\\"):
        return checksum, name
    unescaped = re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), name)
    return checksum[1:], unescaped


def changed_files(folder: Path) -> tuple[str, ...] | None:
    """Return the files in SHA256SUMS that are missing or have other content now; None if there is no SHA256SUMS.

    Raises InputError if a line does not have the format of ``sha256sum``, or names a file outside of ``folder``.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return None
    stated = {}
    for line in filter(None, _checksum_text(path).split("\n")):
        checksum, name = _checksum_and_name(line)
        if not name or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path}: {line!r}: not a line of sha256sum for a file in this folder")
        stated[name] = checksum
    return tuple(name for name, checksum in stated.items() if _sha256(folder / name) != checksum)


def _checksum_text(path: Path) -> str:
    try:
        return read_text(path, errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _sha256(path: Path) -> str:
    return file_sha256(path) if path.is_file() else ""
