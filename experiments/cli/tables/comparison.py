"""Show two runs side by side in the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from experiments.report.compare import Change, Comparison, Difference, RowComparison
from experiments.results.verdict_changes import VerdictChange
from experiments.results.wording import choose_memory_unit, format_number, outcome_in_words
from experiments.system.tables import Column, Line, Table

WORSE, BETTER = "red", "green"


def comparison_tables(comparison: Comparison) -> Group:
    """Return names of the runs, statements whose status differs, rows, changed values, and options that differ."""
    heads = _run_headings(comparison)
    parts: list[RenderableType] = [
        *(Text(f"{letter}  {name}") for letter, name in zip("AB", comparison.names, strict=True)),
        *_warning_lines(comparison),
        Text(),
        _verdict_changes_view(comparison, heads),
        Text(),
        _rows_table(comparison),
        *_emulation_lines(comparison),
        Text(),
        *([_changed_values_view(comparison, heads), Text()] if comparison.before.size == comparison.after.size else []),
        _differences_view(comparison, heads),
    ]
    return Group(*parts)


def _run_headings(comparison: Comparison) -> tuple[str, str]:
    first, second = (
        f"{letter} ({run.started_at[:10]})"
        for letter, run in zip("AB", (comparison.before, comparison.after), strict=True)
    )
    return first, second


def _warning_lines(comparison: Comparison) -> list[Line]:
    notes = {"size": "; memory and times of tiny models and of full size are not compared"}
    lines = [
        f"{one.what} differs: {one.before} and {one.after}{notes.get(one.what, '')}" for one in comparison.incomparable
    ]
    return [Line(f"warning: {line}", "yellow") for line in lines]


def _verdict_changes_view(comparison: Comparison, heads: tuple[str, str]) -> RenderableType:
    if not comparison.verdicts:
        return Text("Every statement has the same status in both runs.")
    in_both_runs = [change for change in comparison.verdicts if change.before and change.after]
    columns = (Column("statement", prose=True), *heads, Column("reason", prose=True))
    table = Table(*columns, title=f"{len(in_both_runs)} changed statuses, worse first")
    for change in in_both_runs:
        table.add(change.says, change.before or "", Text(change.after or "", _color_of_change(change)), change.reason)
    counts_in_one_run = [
        f"{_count_missing_verdicts(comparison, missing_in)} in {run} only"
        for run, missing_in in zip("AB", ("after", "before"), strict=True)
    ]
    others = Text(f"other statements: {', '.join(counts_in_one_run)} (--json shows them)", "dim")
    return Group(
        *([table] if in_both_runs else []), *([others] if len(in_both_runs) < len(comparison.verdicts) else [])
    )


def _count_missing_verdicts(comparison: Comparison, side: str) -> int:
    return sum(getattr(change, side) is None for change in comparison.verdicts)


def _color_of_change(change: VerdictChange) -> str:
    return WORSE if change.worsening > 0 else BETTER if change.worsening < 0 else ""


def _rows_table(comparison: Comparison) -> Table:
    table = Table(
        "row",
        Column("outcome", prose=True),
        Column("peak", prose=True),
        Column("samples/s", prose=True),
        Column("reserved", prose=True, optional=1),
        Column("other settings", prose=True),
        title="rows, A → B, worse first",
    )
    for row in comparison.rows_worse_first:
        style = WORSE if row.worsening > 0 else BETTER if row.worsening < 0 else ""
        table.add(
            Text(row.row, style),
            _outcomes_text(row, comparison),
            _sizes_text(row.peak_gib),
            _numbers_text(row.samples_per_s),
            _sizes_text(row.reserved_gib),
            _settings_text(row),
        )
    return table


def _outcomes_text(row: RowComparison, comparison: Comparison) -> Text:
    outcomes = ((row.outcome_before, comparison.before.size), (row.outcome_after, comparison.after.size))
    a, b = (outcome_in_words(outcome, size) if outcome else "not run" for outcome, size in outcomes)
    return Text(a) if a == b else Text(f"{a} → {b}", "bold")


def _settings_text(row: RowComparison) -> str:
    return ", ".join(f"{one.what} {one.before or 'none'} → {one.after or 'none'}" for one in row.settings)


def _sizes_text(change: Change) -> str:
    """Return a change of memory as text, such as '1.5 → 2.1 GiB (x 1.40)'. The sizes may have different units."""
    units = [None if size is None else choose_memory_unit(size) for size in (change.before, change.after)]
    common = units[0] if units[0] == units[1] else None
    a, b = (
        "–" if size is None or unit is None else format_number(size * unit[1]) + ("" if common else f" {unit[0]}")
        for size, unit in zip((change.before, change.after), units, strict=True)
    )
    return _change_text(change, a, b, f" {common[0]}" if common else "")


def _numbers_text(change: Change) -> str:
    a, b = ("–" if value is None else format_number(value) for value in (change.before, change.after))
    return _change_text(change, a, b)


def _change_text(change: Change, a: str, b: str, unit: str = "") -> str:
    if change.before is None and change.after is None:
        return ""
    if a == b and change.ratio is not None:
        return f"{a}{unit}"
    return f"{a} → {b}{unit}" + (f" (x {change.ratio:.2f})" if change.ratio is not None else "")


def _emulation_lines(comparison: Comparison) -> list[Text]:
    words = {
        words for row in comparison.rows for words in (row.ran_on_before, row.ran_on_after) if "emulating" in words
    }
    return [Text(line, "dim") for line in sorted(words)]


def _changed_values_view(comparison: Comparison, heads: tuple[str, str]) -> RenderableType:
    if not comparison.changed:
        return Text("No outcome and no value changed beyond its noise.")
    return _differences_table("row: value", comparison.changed, heads, "changed beyond noise")


def _differences_table(heading: str, differences: Sequence[Difference], heads: tuple[str, str], title: str) -> Table:
    table = Table(Column(heading, prose=True), *(Column(head, prose=True) for head in heads), title=title)
    for difference in differences:
        table.add(difference.what, *(text or "–" for text in (difference.before, difference.after)))
    return table


def _differences_view(comparison: Comparison, heads: tuple[str, str]) -> RenderableType:
    if not comparison.differences:
        return Text("Both runs have the same options and versions.")
    return _differences_table("option or version", comparison.differences, heads, "what else differs")
