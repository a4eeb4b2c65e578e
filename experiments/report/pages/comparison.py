"""Write a page that compares two runs of one suite: differing options, changed verdicts, each row before and after."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.charts import Bar, Chart, Mark, NoteTone, bar_chart
from experiments.report.compare import Change, Comparison, Difference, RowComparison
from experiments.report.pages.environment import render_template, save_page
from experiments.report.words import format_percent
from experiments.results.wording import choose_memory_unit, format_number

MACHINE_DIFFERENCES = ("card", "device", "driver", "CUDA", "image", "host", "site")
CODE_DIFFERENCES = ("recipe version", "git commit", "training code")
MISSING = "–"


class ValueChange(NamedTuple):
    """A measured value before and after, as text. tone: 'bad' if it got worse, 'good' if better, else ''."""

    name: str
    before: str
    after: str
    unit: str
    change: str
    tone: str


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page to ``path``: one file that needs no network and no JavaScript.

    Raises InputError if ``path`` cannot be written.
    """
    rows = comparison.rows_worse_first
    text = render_template(
        "comparison.html",
        comparison=comparison,
        headline=headline(comparison),
        differences=differences(comparison),
        rows=[(row, row_changes(row)) for row in rows],
        memory=_chart(rows, lambda row: row.peak_gib, "GiB", "Peak memory", more_is_worse=True),
        speed=_chart(rows, lambda row: row.samples_per_s, "samples/s", "Throughput", more_is_worse=False),
    )
    save_page(path, text)


def headline(comparison: Comparison) -> str:
    """Return the numbers of statements and rows that got worse or better in the second run, in words."""
    worsenings = [change.worsening for change in comparison.verdicts if change.before and change.after]
    rows = [row.worsening for row in comparison.rows]
    worse, better = (sum(sign * one > 0 for one in worsenings) for sign in (1, -1))
    slower, faster = (sum(sign * one > 0 for one in rows) for sign in (1, -1))
    if not any((worse, better, slower, faster)):
        return "Nothing got worse or better."
    return f"Statements: {worse} worse, {better} better. Rows: {slower} worse, {faster} better."


def differences(comparison: Comparison) -> dict[str, list[Difference]]:
    """Return the differences between the runs and between settings of rows, by kind; a kind's list may be empty."""
    by_kind: dict[str, list[Difference]] = {"Settings": [], "Packages": [], "Card, driver and machine": [], "Code": []}
    packages = {*comparison.packages}
    for difference in comparison.differences:
        kind = "Settings"
        if difference.what in MACHINE_DIFFERENCES:
            kind = "Card, driver and machine"
        elif difference.what in CODE_DIFFERENCES:
            kind = "Code"
        elif difference.what in packages:
            kind = "Packages"
        by_kind[kind].append(difference)
    by_kind["Settings"] += [
        difference.model_copy(update={"what": f"{row.row}: {difference.what}"})
        for row in comparison.rows
        for difference in row.settings
    ]
    return by_kind


def row_changes(row: RowComparison) -> list[ValueChange]:
    """Return the row's measured values before and after, for values that at least one of the two runs has."""
    return [
        *_memory_changes("peak memory", row.peak_gib),
        *_memory_changes("reserved memory", row.reserved_gib),
        *_throughput_changes(row),
    ]


def _memory_changes(name: str, change: Change) -> Iterator[ValueChange]:
    unit, per_gib = choose_memory_unit(max(change.before or 0.0, change.after or 0.0))
    yield from _value_changes(name, change, unit, per_gib, more_is_worse=True)


def _throughput_changes(row: RowComparison) -> Iterator[ValueChange]:
    yield from _value_changes("throughput", row.samples_per_s, "samples/s", 1, more_is_worse=False)


def _value_changes(name: str, change: Change, unit: str, scale: float, more_is_worse: bool) -> Iterator[ValueChange]:
    if change.before is None and change.after is None:
        return
    before, after = (
        MISSING if value is None else format_number(value * scale) for value in (change.before, change.after)
    )
    share = MISSING if change.ratio is None else format_percent(change.ratio - 1)
    yield ValueChange(name, before, after, unit, share, _css_class_of_change(change, more_is_worse))


def _css_class_of_change(change: Change, more_is_worse: bool) -> str:
    if change.ratio is None or not change.changed:
        return ""
    return "bad" if (change.ratio > 1) == more_is_worse else "good"


def _chart(
    rows: list[RowComparison], change_of: Callable[[RowComparison], Change], unit: str, name: str, more_is_worse: bool
) -> Chart | None:
    """Return a chart of the rows that have a value in both runs, and of its changes; None if there is no such row.

    change_of: returns the change of a row's value. name: the value's name in the chart's description. more_is_worse:
    whether an increase of the value is bad.
    """
    bars = []
    for row in rows:
        change = change_of(row)
        if change.before is None or change.after is None or change.ratio is None:
            continue
        tone: NoteTone = "bad" if _css_class_of_change(change, more_is_worse) == "bad" else "quiet"
        value = f"{format_number(change.before)} → {format_number(change.after)} {unit}"
        bars.append(
            Bar(
                row.row,
                {"after": change.after},
                [Mark("before", change.before)],
                value,
                format_percent(change.ratio - 1),
                tone,
            )
        )
    alt = f"{name} of each row before and after; the same numbers are in the table of rows"
    return bar_chart(bars, unit, alt) if bars else None
