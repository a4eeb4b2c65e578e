"""Build the content of a report. It is stored as report.json; report.html is rendered from it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from experiments.prediction.as_result import EvaluationsByEvidence
from experiments.report.identity import Fact, PreviousRun, identity_facts
from experiments.report.predicted import PredictedReport, predicted_report
from experiments.report.ranks import RankReport, Scaling, rank_reports, scalings, stated_settings
from experiments.report.telemetry import Telemetry, read_telemetry
from experiments.report.words import STATUSES, headline, machine_in_words, remarks, size_and_machines_sentence
from experiments.results.quantities import QUANTITIES, value_of
from experiments.results.run_folder import Run, RunFolder, row_path
from experiments.results.schema import (
    ERROR_OUTCOMES,
    LOG_FILE,
    NOTEBOOK_FILE,
    RESULT_FILE,
    TELEMETRY_FILE,
    Device,
    Record,
    Result,
)
from experiments.results.verdicts import Contradiction, Grade, Status, Verdict
from experiments.results.wording import OUTCOME_NAMES, outcome_in_words
from experiments.suites.cards import cards
from experiments.suites.settings import Settings
from experiments.suites.suite import Quantity, Suite
from experiments.system.logs import end_of_log, last_lines

REPORT_SCHEMA_VERSION: Literal[5] = 5
NOTEBOOK_PAGE = "notebook.html"
MAX_LINE_CHARACTERS = 300
ROW_FILES = {
    "notebook": NOTEBOOK_PAGE,
    "ipynb": NOTEBOOK_FILE,
    "log": LOG_FILE,
    "result": RESULT_FILE,
    "telemetry": TELEMETRY_FILE,
}
"""The files in a row's folder that a report links to, by the text of the link."""


class Statement(Verdict):
    """A verdict, and the machines on which its rows ran. A prediction has no machine."""

    ran_on: tuple[str, ...] = ()
    before: Status | None = Field(default=None, description="status in the previous run; None if there is none")


class RowReport(Record):
    """One row: expected and measured outcome, measurements, and paths of its files."""

    row: str
    title: str
    note: str | None
    settings: Settings
    expected: str = Field(description="empty if no outcome is stated")
    measured: str = Field(description="empty if the row was not run")
    status: Status | None = Field(
        description="status of the statement about the row's outcome; None if the lab states no outcome"
    )
    grade: Grade | None = Field(description="grade of the evidence for the outcome; None if there is no verdict")
    reason: str
    ran_on: str
    emulated: bool
    fewer_ranks_note: str = Field(description="'2 of 4 ranks' if the row ran on fewer ranks than it states; else empty")
    twin_note: str = Field(
        default="",
        description="'scaled to 12 GB' if a twin ran, a copy of the row with a smaller model or batch; else empty",
    )
    ranks: tuple[RankReport, ...]
    reference_values: tuple[Statement, ...] = ()
    quantities: dict[Quantity, float | None]
    log_tail: tuple[str, ...] = Field(description="last lines of the log of a row with an error; else empty")
    files: dict[str, str] = Field(description="paths of existing files, relative to the run's folder, by kind")
    telemetry: Telemetry | None
    result: Result | None


class ValueWithRows(Record):
    """A value, and the rows that have it."""

    value: str
    rows: tuple[str, ...]


class DeviceReport(Record):
    """A device that rows ran on."""

    ran_on: str
    device: Device
    rows: tuple[str, ...]


class Report(Record):
    """report.json: all that report.html shows."""

    schema_version: Literal[5] = REPORT_SCHEMA_VERSION
    run: Run
    title: str
    source: str
    suite_version: int
    headline: str
    identity: tuple[Fact, ...] = Field(description="when, where, versions, time and cost")
    previous: PreviousRun | None = Field(default=None, description="the previous run with the same options")
    setting: str = Field(description="sentence about the size of the run and its machines")
    remarks: tuple[str, ...]
    counts: dict[Status, int]
    statements: tuple[Statement, ...]
    contradictions: tuple[Contradiction, ...]
    rows: tuple[RowReport, ...]
    scaling: tuple[Scaling, ...]
    usable_gib: float | None = Field(
        description="memory that one process can allocate on the card; None for tiny models"
    )
    predicted: PredictedReport | None = None
    devices: tuple[DeviceReport, ...]
    versions: dict[str, tuple[ValueWithRows, ...]]
    git_commits: tuple[ValueWithRows, ...]
    code: tuple[ValueWithRows, ...] = Field(description="SHA-256 of the training code")


def build_report(
    folder: RunFolder,
    suite: Suite,
    graded: EvaluationsByEvidence,
    results: Mapping[str, Result],
    previous: PreviousRun | None = None,
) -> Report:
    """Return the report of the run in ``folder``.

    graded: the run's evaluations. results: by row. previous: the previous run with the same options; None: no such run.
    """
    evaluation = graded.best
    run = evaluation.run
    card = cards().get(run.card)
    statements = tuple(_report_statement(verdict, results, previous) for verdict in evaluation.verdicts)
    return Report(
        run=run,
        title=suite.title,
        source=suite.source,
        suite_version=suite.version,
        headline=headline(evaluation),
        identity=identity_facts(run, results),
        previous=previous,
        setting=size_and_machines_sentence(run, results),
        remarks=remarks(run, suite, evaluation, results),
        counts={status: evaluation.count(status) for status in STATUSES},
        statements=statements,
        contradictions=evaluation.contradictions,
        rows=tuple(_report_row(folder, run, suite, row, statements, results.get(row)) for row in run.rows),
        scaling=scalings(suite, run, results),
        usable_gib=card.usable_gib if card and run.size != "tiny" else None,
        predicted=predicted_report(suite, graded, folder.predictions(), results),
        devices=_devices(results),
        versions=_versions(results),
        git_commits=_group_by_value((row, result.git_commit or "unknown") for row, result in results.items()),
        code=_group_by_value((row, result.code) for row, result in results.items()),
    )


def _report_statement(verdict: Verdict, results: Mapping[str, Result], previous: PreviousRun | None) -> Statement:
    rows = () if verdict.grade == "predicted" else verdict.rows
    machines = dict.fromkeys(machine_in_words(results[row]) for row in rows if row in results)
    status_before = previous.statuses.get(verdict.id) if previous else None
    return Statement(**verdict.model_dump(), ran_on=tuple(machines), before=status_before)


def _report_row(
    folder: RunFolder, run: Run, suite: Suite, row_id: str, statements: tuple[Statement, ...], result: Result | None
) -> RowReport:
    row = suite.row(row_id)
    row_statements = [statement for statement in statements if statement.rows == (row_id,)]
    outcome = next((statement for statement in row_statements if statement.kind == "outcome"), None)
    settings = result.spec.settings if result else run.spec(suite, row_id).settings
    return RowReport(
        row=row_id,
        title=row.title,
        note=row.note,
        settings=settings,
        expected=OUTCOME_NAMES[row.expect.outcome] if row.expect.outcome else "",
        measured=outcome_in_words(result.outcome, result.spec.size) if result else "",
        status=outcome.status if outcome else None,
        grade=outcome.grade if outcome else None,
        reason=result.reason if result else "the row was not run",
        ran_on=machine_in_words(result) if result else "",
        emulated=result.emulated if result else False,
        fewer_ranks_note=_fewer_ranks_note(stated_settings(suite, run, row_id), settings),
        twin_note=suite.twin_note(row_id, run.card),
        ranks=rank_reports(result) if result else (),
        reference_values=tuple(statement for statement in row_statements if statement.kind == "reference value"),
        quantities={name: value_of(name, result) if result else None for name in QUANTITIES},
        log_tail=_log_tail(folder.path / row_path(run.suite, row_id) / LOG_FILE, result) if _has_error(result) else (),
        files=_row_files(folder, run, row_id),
        telemetry=read_telemetry(folder.telemetry_file(row_id)),
        result=result,
    )


def _has_error(result: Result | None) -> bool:
    return result is not None and result.outcome in ERROR_OUTCOMES


def _log_tail(path: Path, result: Result | None) -> tuple[str, ...]:
    """Return the last lines of a log, without empty lines and terminal codes, each cut to MAX_LINE_CHARACTERS.

    Without a log file, return the lines that are stored in the result.
    """
    if not path.is_file():
        return result.failure.log if result and result.failure else ()
    return tuple(line[:MAX_LINE_CHARACTERS] for line in last_lines(end_of_log(path)))


def _fewer_ranks_note(stated: Settings, actual: Settings) -> str:
    return "" if actual.world_size == stated.world_size else f"{actual.world_size} of {stated.world_size} ranks"


def _row_files(folder: RunFolder, run: Run, row_id: str) -> dict[str, str]:
    paths = {kind: f"{row_path(run.suite, row_id)}/{name}" for kind, name in ROW_FILES.items()}
    return {kind: path for kind, path in paths.items() if (folder.path / path).is_file()}


def _group_by_value(pairs: Iterable[tuple[str, str]]) -> tuple[ValueWithRows, ...]:
    """Return rows grouped by value, the most frequent value first."""
    rows: dict[str, list[str]] = {}
    for row, value in pairs:
        rows.setdefault(value, []).append(row)
    return tuple(
        ValueWithRows(value=value, rows=tuple(value_rows))
        for value, value_rows in sorted(rows.items(), key=lambda group: -len(group[1]))
    )


def _versions(results: Mapping[str, Result]) -> dict[str, tuple[ValueWithRows, ...]]:
    names = dict.fromkeys(name for result in results.values() for name in result.versions)
    return {
        name: _group_by_value(
            (row, result.versions[name]) for row, result in results.items() if name in result.versions
        )
        for name in names
    }


def _devices(results: Mapping[str, Result]) -> tuple[DeviceReport, ...]:
    rows: dict[tuple[str, str], list[str]] = {}
    for row, result in results.items():
        rows.setdefault((machine_in_words(result), result.device.model_dump_json()), []).append(row)
    return tuple(
        DeviceReport(ran_on=words, device=results[device_rows[0]].device, rows=tuple(device_rows))
        for (words, _), device_rows in rows.items()
    )
