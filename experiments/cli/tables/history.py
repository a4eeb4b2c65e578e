"""Show the history of runs in the terminal, as JSON, and as CSV."""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from experiments.history.changes import RunChanges
from experiments.history.series import Series
from experiments.report.words import ICONS
from experiments.results.wording import COMMIT_DIGITS, format_number, format_size, quantity_label, quantity_unit
from experiments.system.files import open_output
from experiments.system.tables import Column, Table

BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN_QUANTITIES = ("peak_gib", "reserved_gib", "step_s", "samples_per_s", "last_loss")
STATUSES = ("error", "fail", "pass")
RECENT_RUNS = 12
"""Number of runs, the newest ones, whose values are drawn."""
CSV_COLUMNS = ("suite", "card", "size", "length", "run_id", "started_at", "commit", "row", "quantity", "value")
STATUS_ICONS: dict[str, str] = {str(status): icon for status, icon in ICONS.items()}
STYLES = {"pass": "green", "fail": "red", "error": "red"}
LEGEND = Text("  ".join(f"{icon} {status}" for status, icon in STATUS_ICONS.items()), "dim")
MISSING_VALUE = "·"


def history_tables(changes_of_series: Sequence[tuple[Series, list[RunChanges]]], details: bool) -> Group:
    """Return what changed in each series (the runs of a suite with the same options), then a line per row.

    Series in which something changed come first. details: whether to show every statement and every measured value in
    place of the line per row.
    """
    parts: list[RenderableType] = []
    for series, changed in sorted(changes_of_series, key=lambda one: not one[1]):
        first, last = series.runs[0].started_at[:10], series.runs[-1].started_at[:10]
        runs = f"1 run, {first}" if len(series.runs) == 1 else f"{len(series.runs)} runs, {first} to {last}"
        parts += [Text(f"{series.title}: {runs}", "bold"), *_change_parts(series, changed), Text()]
        parts += (
            [_verdicts_table(series), LEGEND, Text(), _values_table(series)]
            if details
            else [_rows_table(series), _status_counts_line(series)]
        )
        parts.append(Text())
    return Group(*parts)


def _change_parts(series: Series, changed: Sequence[RunChanges]) -> list[RenderableType]:
    if not changed:
        return [Text("nothing changed" if len(series.runs) > 1 else "no earlier run to compare with")]
    lines: list[RenderableType] = []
    for changes in reversed(changed):
        lines.append(
            Text(f"changed in {changes.run.name}, commit {changes.run.commit[:COMMIT_DIGITS] or 'unknown'}", "yellow")
        )
        lines += [_indent(sentence) for sentence in changes.sentences]
        lines += [_indent(f"flipped within noise: {flip.sentence}", "dim") for flip in changes.borderline]
        causes = "; ".join(cause.sentence for cause in changes.causes) or "no version, device, code or data"
        lines.append(_indent(f"what else differs: {causes}", "dim"))
    return lines


def _indent(line: str, style: str = "") -> Padding:
    return Padding(Text(line, style), (0, 0, 0, 2))


def _verdicts_table(series: Series) -> Table:
    table = Table(Column("statement", prose=True), "oldest → newest")
    for says, statuses in series.statuses_by_statement:
        marks = [Text(STATUS_ICONS.get(status, " "), STYLES.get(status, "dim")) for status in statuses[-RECENT_RUNS:]]
        table.add(says, Text.assemble(*marks))
    return table


def _status_counts_line(series: Series) -> Text:
    counts = Counter(statuses[-1] for _, statuses in series.statuses_by_statement)
    shown = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    return Text(f"statements in the newest run: {shown or 'none'}; --all shows each, and every measured value", "dim")


def _rows_table(series: Series) -> Table:
    """Return one line for each row: its newest peak and time of a step, and both over time."""
    heads = (Column("peak", number=True), Column("step", number=True))
    table = Table("row", heads[0], "oldest → newest", heads[1], "oldest → newest")
    for row in dict.fromkeys(key[0] for key in series.keys):
        peaks, steps = series.values((row, "peak_gib")), series.values((row, "step_s"))
        if any(value is not None for value in (*peaks, *steps)):
            table.add(
                row,
                _newest_text(peaks, format_size),
                sparkline(peaks),
                _newest_text(steps, lambda s: f"{format_number(s)} s"),
                sparkline(steps),
            )
    return table


def _newest_value(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _values_table(series: Series) -> Table:
    table = Table("row", "quantity", "oldest → newest", Column("oldest", number=True), Column("newest", number=True))
    for key in series.keys:
        values = series.values(key)
        if key[1] in SHOWN_QUANTITIES and _newest_value(values) is not None:
            quantity = ", ".join(filter(None, (quantity_label(key[1]), quantity_unit(key[1]))))
            table.add(
                key[0],
                quantity,
                sparkline(values),
                _newest_text(values[::-1], format_number),
                _newest_text(values, format_number),
            )
    return table


def _newest_text(values: Sequence[float | None], to_text: Callable[[float], str]) -> str:
    """Return the newest known value as text; empty if none is known."""
    newest = _newest_value(values)
    return "" if newest is None else to_text(newest)


def sparkline(values: Sequence[float | None]) -> str:
    """Return one block character for each recent value, and a dot for each missing value.

    The lowest value has the lowest block, and the highest value has the highest block.
    """
    recent = values[-RECENT_RUNS:]
    known = [value for value in recent if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    steps = [None if one is None else (one - low) / span if span else 0.0 for one in recent]
    return "".join(MISSING_VALUE if step is None else BLOCKS[round(step * (len(BLOCKS) - 1))] for step in steps)


def changes_as_data(series: Series, changed: Sequence[RunChanges]) -> dict[str, Any]:
    """Return a series and its changes for JSON."""
    return {
        "suite": series.suite,
        "card": series.card,
        "size": series.size,
        "length": series.length,
        "runs": [{"run_id": run.run_id, "started_at": run.started_at, "commit": run.commit} for run in series.runs],
        "changes": [
            {
                "run_id": changes.run.run_id,
                "started_at": changes.run.started_at,
                "changed": [change._asdict() for change in changes.changed],
                "borderline": [flip._asdict() for flip in changes.borderline],
                "differs": [cause._asdict() for cause in changes.causes],
            }
            for changes in changed
        ],
    }


def write_csv(path: Path, all_series: Sequence[Series]) -> None:
    """Write one line for each measured value of each run. Raises InputError if the file cannot be written."""
    with open_output(path, "--csv") as file:
        lines = csv.writer(file)
        lines.writerow(CSV_COLUMNS)
        for series in all_series:
            for run in series.runs:
                head = (*series[:4], run.run_id, run.started_at, run.commit)
                lines.writerows((*head, *key, one.value) for key, one in run.measured.items())
