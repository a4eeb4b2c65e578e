"""Runs and their verdicts as tables for a terminal, and as data."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.text import Text

from experiments.report.words import STATUSES, headline
from experiments.results.verdict_changes import VerdictChange
from experiments.results.verdicts import Evaluation, Status, Verdict
from experiments.system.tables import Column, Line, Table, print_lines

if TYPE_CHECKING:
    from experiments.pipeline import FinishedRun

PROBLEM_STATUSES = ("error", "fail")
MAX_REASONS = 6
"""Maximum number of shown reasons why statements were not evaluated."""
STYLES = {"pass": "green", "fail": "red", "error": "bold red", "not evaluated": "dim"}


def verdict_table(evaluation: Evaluation, show_all: bool = False) -> Group:
    """Return the verdicts with their reasons, the most severe status first, and the headline.

    Statements that were not evaluated are counted by reason. With ``show_all``, each of them has its own line instead.
    """
    table = Table("verdict", Column("statement", prose=True), "grade", Column("value or reason", prose=True))
    shown = [verdict for verdict in evaluation.verdicts if show_all or verdict.status != "not evaluated"]
    for verdict in sorted(shown, key=lambda verdict: STATUSES.index(verdict.status)):
        table.add(
            Text(verdict.status, STYLES[verdict.status]), verdict.says, verdict.grade or "", _value_or_reason(verdict)
        )
    name = Text(evaluation.run.run_id, "bold")
    unevaluated = [_reasons_with_counts(evaluation)] if len(shown) < len(evaluation.verdicts) else []
    return Group(
        name, *([table] if shown else []), *contradiction_lines(evaluation), *unevaluated, _headline(evaluation)
    )


def _headline(evaluation: Evaluation) -> Line:
    failed = evaluation.exit_code or evaluation.contradictions
    return Line(headline(evaluation), "bold red" if failed else "bold")


def _reasons_with_counts(evaluation: Evaluation) -> Table:
    """Return why statements were not evaluated, with the number of statements for each reason."""
    left = [verdict for verdict in evaluation.verdicts if verdict.status == "not evaluated"]
    reasons = Counter(verdict.kind_of_reason for verdict in left)
    table = Table(Column(str(reasons.total()), number=True), Column("not evaluated (--all shows each)", prose=True))
    common = reasons.most_common(MAX_REASONS)
    for reason, count in common:
        table.add(str(count), Text(reason, "dim"))
    if others := reasons.total() - sum(count for _, count in common):
        table.add(str(others), Text("for other reasons", "dim"))
    return table


def contradiction_lines(evaluation: Evaluation) -> list[Line]:
    """Return a line for each prediction that contradicts a measurement, with both values."""
    return [
        Line(
            Text.assemble(
                ("prediction contradicts measurement", "yellow"),
                f": {contradiction.says} Predicted: {contradiction.predicted.status}, {contradiction.predicted.value};"
                f" {contradiction.measured.grade}: {contradiction.measured.status}, {contradiction.measured.value}",
            )
        )
        for contradiction in evaluation.contradictions
    ]


def counts_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return a table with the number of statements by status, for each suite and in total."""
    table = Table("suite", *(Column(status, number=True) for status in STATUSES))
    counts = {one.run.suite: [one.count(status) for status in STATUSES] for one in evaluations}
    for name, suite_counts in (
        *counts.items(),
        ("all", [sum(column) for column in zip(*counts.values(), strict=True)]),
    ):
        table.add(name, *map(status_count, STATUSES, suite_counts))
    return table


def status_count(status: Status, count: int) -> Text:
    """Return a number of statements in the color of their status."""
    return Text(str(count), STYLES[status] if count else "dim")


def problem_lines(evaluations: Sequence[Evaluation]) -> Group | None:
    """Return a line for each statement that is an error or failed, with suite and reason; errors first."""
    problems = [
        (one.run.suite, verdict)
        for one in evaluations
        for verdict in one.verdicts
        if verdict.status in PROBLEM_STATUSES
    ]
    lines = [
        Line(
            Text.assemble(
                f"{suite}: ",
                (verdict.status, STYLES[verdict.status]),
                f"{_grade_note(verdict)}: {verdict.says} ({_value_or_reason(verdict)})",
            )
        )
        for suite, verdict in sorted(problems, key=lambda item: PROBLEM_STATUSES.index(item[1].status))
    ]
    return Group(*lines) if lines else None


def _grade_note(verdict: Verdict) -> str:
    return f", {verdict.grade}" if verdict.grade else ""


def show_runs(runs: "Iterable[FinishedRun]", console: Console) -> "list[FinishedRun]":
    """Print the verdicts of each run and the path of its report when the run is finished; return the runs.

    After several runs, also print a summary, failures first.
    """
    finished = []
    for finished_run in runs:
        console.print(verdict_table(finished_run.evaluation))
        _show_report(finished_run, console)
        finished.append(finished_run)
    evaluations = [finished_run.evaluation for finished_run in finished]
    if len(finished) > 1:
        if problems := problem_lines(evaluations):
            console.print(problems)
        console.print(counts_table(evaluations))
        for finished_run in finished:
            _show_report(finished_run, console)
    return finished


def _show_report(finished_run: "FinishedRun", console: Console) -> None:
    print_lines(console, f"report: {finished_run.report}")


def run_as_data(finished: "FinishedRun") -> dict[str, Any]:
    """Return a finished run with its verdicts for --json."""
    return {
        "folder": str(finished.folder),
        "report": str(finished.report),
        "exit_code": finished.evaluation.exit_code,
        **finished.evaluation.model_dump(mode="json"),
    }


def changes_table(changes: Sequence[VerdictChange]) -> Table:
    """Return a table of the statements whose status has changed since the run."""
    columns = (Column("statement", prose=True), "was", "is", Column("why", prose=True))
    table = Table(*columns, title="changed statuses")
    for change in changes:
        table.add(change.says, change.before or "not stated", change.after or "not stated", change.reason)
    return table


def _value_or_reason(verdict: Verdict) -> str:
    """Return the value of a statement that passes, else the reason of the verdict."""
    return verdict.value if verdict.status == "pass" else verdict.reason or verdict.value
