"""Compare two runs of one suite: results of each row, and the options that differ."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from rich.console import Group
from rich.table import Table
from rich.text import Text

from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.report.words import ran_on
from experiments.results.quantities import value_of
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Outcome, Record, Result
from experiments.results.verdict_changes import VerdictChange, verdict_changes
from experiments.results.wording import OUTCOMES, number
from experiments.run_options import SHOWN
from experiments.suites.suite import Quantity

COMPARISON_SCHEMA_VERSION: Literal[2] = 2
ORIGIN = ("recipe_version", "git_commit", "host")
"""Fields of run.json that no option sets."""


class Change(Record):
    """A measured value in both runs; None if a run does not have it."""

    a: float | None
    b: float | None
    ratio: float | None = Field(description="b over a; None if either is missing or a is 0")


class RowComparison(Record):
    """One row in both runs. An outcome of None: the row has no result in that run. Memory in GiB."""

    row: str
    outcome_a: Outcome | None
    outcome_b: Outcome | None
    ran_on_a: str
    ran_on_b: str
    same_experiment: bool | None = Field(description="the fingerprints are equal; None if a result is missing")
    peak_gib: Change
    reserved_gib: Change
    samples_per_s: Change


class Difference(Record):
    """An option, device or version that differs between the runs; empty if a run has none."""

    what: str
    a: str
    b: str


class Comparison(Record):
    """Two runs of one suite side by side; both are evaluated with the current suites."""

    schema_version: Literal[2] = COMPARISON_SCHEMA_VERSION
    a: Run
    b: Run
    differences: tuple[Difference, ...]
    rows: tuple[RowComparison, ...]
    verdicts: tuple[VerdictChange, ...] = Field(description="the statements whose status differs")


def compare(a: RunFolder, b: RunFolder) -> Comparison:
    """Compare the runs in ``a`` and ``b``. Raises InputError if one is not a run, or if their suites differ."""
    run_a, run_b = a.read_run(), b.read_run()
    if run_a.suite != run_b.suite:
        raise InputError(f"{b.path}: suite = {run_b.suite!r}: only runs of one suite compare; allowed: {run_a.suite!r}")
    results_a, results_b = a.results(), b.results()
    suite = a.suite()
    rows = [row.id for row in suite.rows if row.id in {*run_a.rows, *run_b.rows}]
    return Comparison(
        a=run_a,
        b=run_b,
        differences=_differences(run_a, run_b, results_a, results_b),
        rows=tuple(_row(row, results_a.get(row), results_b.get(row)) for row in rows),
        verdicts=verdict_changes(
            evaluate_run(suite, a).best.verdicts,
            evaluate_run(suite, b).best.verdicts,
        ),
    )


def _row(row: str, a: Result | None, b: Result | None) -> RowComparison:
    return RowComparison(
        row=row,
        outcome_a=a.outcome if a else None,
        outcome_b=b.outcome if b else None,
        ran_on_a=ran_on(a) if a else "",
        ran_on_b=ran_on(b) if b else "",
        same_experiment=a.fingerprint == b.fingerprint if a and b else None,
        peak_gib=_measured("peak_gib", a, b),
        reserved_gib=_measured("reserved_gib", a, b),
        samples_per_s=_measured("samples_per_s", a, b),
    )


def _measured(quantity: Quantity, a: Result | None, b: Result | None) -> Change:
    value_a, value_b = (value_of(quantity, result) if result else None for result in (a, b))
    ratio = value_b / value_a if value_a and value_b is not None else None
    return Change(a=value_a, b=value_b, ratio=ratio)


def _differences(
    a: Run, b: Run, results_a: Mapping[str, Result], results_b: Mapping[str, Result]
) -> tuple[Difference, ...]:
    facts_a, facts_b = _facts(a, results_a), _facts(b, results_b)
    return tuple(
        Difference(what=what, a=facts_a.get(what, ""), b=facts_b.get(what, ""))
        for what in dict.fromkeys([*facts_a, *facts_b])
        if facts_a.get(what, "") != facts_b.get(what, "")
    )


def _facts(run: Run, results: Mapping[str, Result]) -> dict[str, str]:
    """Return the run's options and the machines and versions of its rows, by name."""
    facts = {choice.replace("_", " "): str(getattr(run, choice) or "") for choice in (*SHOWN, *ORIGIN)}
    seen: dict[str, set[str]] = {}
    for result in results.values():
        seen.setdefault("device", set()).add(ran_on(result))
        seen.setdefault("driver", set()).add(result.device.driver or "")
        seen.setdefault("training code", set()).add(result.code)
        for library, version in result.versions.items():
            seen.setdefault(library, set()).add(version)
    return facts | {what: ", ".join(sorted(filter(None, values))) for what, values in seen.items()}


def comparison_table(comparison: Comparison) -> Group:
    """Return the comparison for the terminal: options that differ, rows, and verdicts that changed."""
    parts = [_choices_table(comparison), Text(), _rows_table(comparison), Text(), _verdicts_table(comparison)]
    return Group(*parts)


def _choices_table(comparison: Comparison) -> Table | Text:
    if not comparison.differences:
        return Text("Both runs made the same choices, with the same versions.")
    table = _table("What differed", "choice", comparison.a.run_id, comparison.b.run_id)
    for difference in comparison.differences:
        table.add_row(*(Text(text or "–") for text in (difference.what, difference.a, difference.b)))
    return table


def _rows_table(comparison: Comparison) -> Table:
    table = Table(title=Text(f"{comparison.a.run_id} → {comparison.b.run_id}"))
    table.add_column("row", overflow="fold")
    table.add_column("outcome")
    for name in ("peak GiB", "reserved GiB", "samples/s"):
        table.add_column(name, justify="right")
    table.add_column("same settings")
    for row in comparison.rows:
        same = {True: "yes", False: "no", None: "–"}[row.same_experiment]
        changes = (row.peak_gib, row.reserved_gib, row.samples_per_s)
        table.add_row(row.row, _outcomes(row), *map(_change, changes), same)
    stand_ins = {words for row in comparison.rows for words in (row.ran_on_a, row.ran_on_b) if "emulating" in words}
    table.caption = Text("; ".join(sorted(stand_ins))) if stand_ins else None
    return table


def _outcomes(row: RowComparison) -> Text:
    a, b = (OUTCOMES[outcome] if outcome else "not run" for outcome in (row.outcome_a, row.outcome_b))
    return Text(a) if a == b else Text(f"{a} → {b}", style="bold")


def _change(change: Change) -> Text:
    if change.a is None and change.b is None:
        return Text("–")
    a, b = ("–" if value is None else number(value) for value in (change.a, change.b))
    return Text(f"{a} → {b}" + (f" (x {change.ratio:.2f})" if change.ratio is not None else ""))


def _verdicts_table(comparison: Comparison) -> Table | Text:
    if not comparison.verdicts:
        return Text("Every statement has the same verdict in both runs.")
    table = _table("Verdicts that changed", "statement", comparison.a.run_id, comparison.b.run_id, "reason")
    for change in comparison.verdicts:
        cells = (change.says, change.a or "not in the run", change.b or "not in the run", change.reason)
        table.add_row(*map(Text, cells))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(Text(column))
    return table
