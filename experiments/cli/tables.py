"""Suites, rows and verdicts as tables for a terminal, and as data."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from experiments.report.words import STATUSES, headline
from experiments.results.evaluate import Evaluation, Verdict
from experiments.results.verdict_changes import VerdictChange
from experiments.results.wording import OUTCOMES
from experiments.suites.settings import Settings
from experiments.suites.suite import Suite, suite_named, suite_names

if TYPE_CHECKING:
    from experiments.pipeline import FinishedRun

PROBLEMS = ("error", "fail")
STYLES = {"pass": "green", "fail": "red", "error": "bold red", "not evaluated": "dim"}


def verdict_table(evaluation: Evaluation) -> Group:
    """Every verdict, those that fail first, with what it rests on; the headline under them."""
    table = Table(Column("verdict", no_wrap=True), "statement", evaluation.basis, box=SIMPLE_HEAD, pad_edge=False)
    for verdict in sorted(evaluation.verdicts, key=lambda verdict: STATUSES.index(verdict.status)):
        table.add_row(Text(verdict.status, STYLES[verdict.status]), Text(verdict.says), Text(_basis(verdict)))
    return Group(Text(evaluation.run.run_id, "bold"), table, Text(headline(evaluation), "bold"))


def counts_table(evaluations: Sequence[Evaluation]) -> Table:
    """How many statements of each suite have which verdict, a suite in a line, and of all of them together."""
    table = Table("suite", *(Column(status, justify="right") for status in STATUSES), box=SIMPLE_HEAD, pad_edge=False)
    counts = {one.run.suite: [one.count(status) for status in STATUSES] for one in evaluations}
    for name, own in (*counts.items(), ("all", [sum(column) for column in zip(*counts.values(), strict=True)])):
        styles = [STYLES[status] if count else "dim" for status, count in zip(STATUSES, own, strict=True)]
        table.add_row(Text(name), *(Text(str(count), style) for count, style in zip(own, styles, strict=True)))
    return table


def problems(evaluations: Sequence[Evaluation]) -> Text:
    """Each statement that fails or ended in an error in a line, with its suite and the reason; errors first."""
    found = [(one.run.suite, verdict) for one in evaluations for verdict in one.verdicts if verdict.status in PROBLEMS]
    lines = [
        Text.assemble(f"{suite}: ", (verdict.status, STYLES[verdict.status]), f": {verdict.says} ({_basis(verdict)})")
        for suite, verdict in sorted(found, key=lambda told: PROBLEMS.index(told[1].status))
    ]
    return Text("\n").join(lines)


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
    """The statements whose status differs from that of the run."""
    table = Table("statement", "was", "is", "why", title="changed since the run", title_justify="left")
    for change in changes:
        table.add_row(*map(Text, (change.says, change.a or "not stated", change.b or "not stated", change.reason)))
    return table


def suites_as_data() -> list[dict[str, Any]]:
    """Every suite: its name, title, cards, number of rows and of claims."""
    suites = (suite_named(name) for name in suite_names())
    return [
        {
            "suite": suite.suite,
            "version": suite.version,
            "title": suite.title,
            "engine": suite.common.get("engine"),
            "cards": list(suite.cards),
            "rows": len(suite.rows),
            "claims": len(suite.claims),
        }
        for suite in suites
    ]


def suites_table() -> Table:
    """Every suite in one line."""
    table = Table(Column("suite", no_wrap=True), "title", "rows", "claims", "engine", "cards")
    for suite in suites_as_data():
        cells = [suite[key] for key in ("suite", "title", "rows", "claims", "engine")]
        table.add_row(*map(str, cells), ", ".join(suite["cards"]))
    return table


def rows_as_data(name: str, card: str | None) -> list[dict[str, Any]]:
    """The rows of a suite on ``card`` (None: its first) with all that they set; InputError for unknown names."""
    suite, card = _suite_and_card(name, card)
    return [
        {
            "row": row.id,
            "title": row.title,
            "card": card,
            "expected": row.expect.outcome,
            "settings": suite.settings(row, card).model_dump(mode="json"),
        }
        for row in suite.rows_for(card)
    ]


def rows_table(name: str, card: str | None) -> Table:
    """The rows of a suite on ``card`` in one line each: what sets them apart from the suite's common settings."""
    suite, card = _suite_and_card(name, card)
    columns = (Column("row", no_wrap=True), Column("model", no_wrap=True), "expected", "settings")
    table = Table(*columns, title=f"{suite.title}, on {card}", title_justify="left")
    for row in suite.rows_for(card):
        settings = suite.settings(row, card)
        table.add_row(row.id, settings.model, OUTCOMES.get(row.expect.outcome or "", ""), _in_words(suite, settings))
    return table


def _basis(verdict: Verdict) -> str:
    """What a verdict rests on: the reason, or what was measured of a pass."""
    return verdict.measured if verdict.status == "pass" else verdict.reason or verdict.measured


def _suite_and_card(name: str, card: str | None) -> tuple[Suite, str]:
    suite = suite_named(name)
    return suite, card or suite.cards[0]


def _in_words(suite: Suite, settings: Settings) -> str:
    """The settings that are neither the suite's common ones nor unset."""
    plain = settings.model_dump(mode="json", exclude_defaults=True)
    own = {key: value for key, value in plain.items() if value != suite.common.get(key) and key != "model"}
    return ", ".join(f"{key} {_compact(value)}" for key, value in own.items() if key != "global_batch_size")


def _compact(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(_compact(part)) for part in value.values())
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
