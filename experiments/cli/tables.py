"""Runs and their verdicts as tables for a terminal, and as data."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from experiments.report.words import STATUSES, headline
from experiments.results.verdict_changes import VerdictChange
from experiments.results.verdicts import Evaluation, Verdict

if TYPE_CHECKING:
    from experiments.pipeline import FinishedRun

PROBLEMS = ("error", "fail")
STYLES = {"pass": "green", "fail": "red", "error": "bold red", "not evaluated": "dim"}


def verdict_table(evaluation: Evaluation) -> Group:
    """Return a table of all verdicts with their reasons, the most severe status first, and the headline."""
    columns = (Column("verdict", no_wrap=True), "statement", Column("grade", no_wrap=True), "value or reason")
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for verdict in sorted(evaluation.verdicts, key=lambda verdict: STATUSES.index(verdict.status)):
        status, grade = Text(verdict.status, STYLES[verdict.status]), Text(verdict.grade or "")
        table.add_row(status, Text(verdict.says), grade, Text(_basis(verdict)))
    name, found = Text(evaluation.run.run_id, "bold"), contradictions(evaluation)
    return Group(name, table, *found, Text(headline(evaluation), "bold"))


def contradictions(evaluation: Evaluation) -> list[Text]:
    """Return a line for each prediction that contradicts a measurement, with both values."""
    return [
        Text.assemble(
            ("prediction contradicts measurement", "yellow"),
            f": {one.says} {one.predicted.status}, predicted: {one.predicted.value};"
            f" {one.measured.status}, {one.measured.grade}: {one.measured.value}",
        )
        for one in evaluation.contradictions
    ]


def counts_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return a table with the number of statements by status, for each suite and in total."""
    table = Table("suite", *(Column(status, justify="right") for status in STATUSES), box=SIMPLE_HEAD, pad_edge=False)
    counts = {one.run.suite: [one.count(status) for status in STATUSES] for one in evaluations}
    for name, own in (*counts.items(), ("all", [sum(column) for column in zip(*counts.values(), strict=True)])):
        styles = [STYLES[status] if count else "dim" for status, count in zip(STATUSES, own, strict=True)]
        table.add_row(Text(name), *(Text(str(count), style) for count, style in zip(own, styles, strict=True)))
    return table


def problems(evaluations: Sequence[Evaluation]) -> Text:
    """Return a line for each statement that is an error or failed, with suite and reason; errors first."""
    found = [(one.run.suite, verdict) for one in evaluations for verdict in one.verdicts if verdict.status in PROBLEMS]
    lines = [
        Text.assemble(
            f"{suite}: ",
            (verdict.status, STYLES[verdict.status]),
            f"{_graded(verdict)}: {verdict.says} ({_basis(verdict)})",
        )
        for suite, verdict in sorted(found, key=lambda item: PROBLEMS.index(item[1].status))
    ]
    return Text("\n").join(lines)


def _graded(verdict: Verdict) -> str:
    return f", {verdict.grade}" if verdict.grade else ""


def show_runs(runs: "Iterable[FinishedRun]", console: Console) -> "list[FinishedRun]":
    """Print verdicts and report of each run when it is finished, and a summary of several; return the runs."""
    finished = []
    for done in runs:
        console.print(verdict_table(done.evaluation))
        _show_report(done, console)
        finished.append(done)
    evaluations = [done.evaluation for done in finished]
    if len(finished) > 1:
        console.print(counts_table(evaluations))
        for done in finished:
            _show_report(done, console)
    if found := problems(evaluations):
        console.print(found)
    return finished


def _show_report(done: "FinishedRun", console: Console) -> None:
    console.print(f"report: {done.report}", soft_wrap=True, highlight=False)


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
    table = Table("statement", "was", "is", "why", title="changed statuses", title_justify="left")
    for change in changes:
        table.add_row(*map(Text, (change.says, change.a or "not stated", change.b or "not stated", change.reason)))
    return table


def _basis(verdict: Verdict) -> str:
    """Return the reason of a verdict, or the value of a statement that passed."""
    return verdict.value if verdict.status == "pass" else verdict.reason or verdict.value
