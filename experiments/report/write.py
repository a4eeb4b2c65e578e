"""Writes a run's verdicts and reports into its folder, and evaluates stored runs again."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from experiments.errors import InputError
from experiments.report.content import report_of
from experiments.report.junit import junit
from experiments.report.page import page
from experiments.results.evaluate import VERDICT_SCHEMA_VERSION, Evaluation, evaluate
from experiments.results.run_folder import RUN_FILE, RunFolder
from experiments.results.schema import Record
from experiments.results.verdict_changes import VerdictChange, verdict_changes
from experiments.suites.suite import suite_named
from experiments.system.files import file_sha256, write_atomically

VERDICT_FILE = "verdict.json"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
JUNIT_FILE = "junit.xml"
CHECKSUMS_FILE = "SHA256SUMS"


@dataclass(frozen=True)
class WrittenReport:
    """What write_report wrote: the path of report.html, and the evaluation that it shows."""

    page: Path
    evaluation: Evaluation


class Reevaluated(Record):
    """A stored run, evaluated by the suites of today. changes: compared with its verdict.json, if it has one."""

    folder: Path
    evaluation: Evaluation
    changes: tuple[VerdictChange, ...] = ()


def write_report(folder: RunFolder) -> WrittenReport:
    """Write verdict.json, report.json, junit.xml, report.html and SHA256SUMS into ``folder``.

    Rows without a result are reported as not run. InputError when ``folder`` is no run's folder, when its suite or one
    of its rows is unknown, or when a result cannot be read.
    """
    run, results = folder.read_run(), folder.results()
    suite = suite_named(run.suite)
    evaluation = evaluate(suite, run, results)
    report = report_of(folder, suite, evaluation, results)
    write_atomically(folder.path / VERDICT_FILE, evaluation.model_dump_json(indent=2))
    write_atomically(folder.path / REPORT_FILE, report.model_dump_json(indent=2))
    write_atomically(folder.path / JUNIT_FILE, junit(report))
    write_atomically(folder.path / PAGE_FILE, page(report))
    write_atomically(folder.path / CHECKSUMS_FILE, checksums(folder.path))
    return WrittenReport(folder.path / PAGE_FILE, evaluation)


def reevaluate(root: Path) -> tuple[Reevaluated, ...]:
    """Every run's folder at or under ``root``, evaluated by the suites of today; nothing is written.

    InputError when there is no run under ``root``, or what ``write_report`` raises for one of them.
    """
    paths = sorted(path.parent for path in root.rglob(RUN_FILE))
    if not paths:
        raise InputError(f"{root}: no run's folder here (none has a {RUN_FILE})")
    return tuple(_reevaluated(RunFolder(path)) for path in paths)


def _reevaluated(folder: RunFolder) -> Reevaluated:
    run = folder.read_run()
    evaluation = evaluate(suite_named(run.suite), run, folder.results())
    kept = _kept_evaluation(folder.path / VERDICT_FILE)
    return Reevaluated(
        folder=folder.path,
        evaluation=evaluation,
        changes=verdict_changes(kept.verdicts, evaluation.verdicts) if kept else (),
    )


def _kept_evaluation(path: Path) -> Evaluation | None:
    if not path.is_file():
        return None
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise InputError(f"{path}: not verdicts of schema version {VERDICT_SCHEMA_VERSION} ({problem})") from None


def checksums(folder: Path) -> str:
    """SHA-256 of every file under ``folder`` but SHA256SUMS, as ``sha256sum -c`` reads it from inside the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS_FILE)
    return "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)
