"""The history of runs, for the terminal, as data, and as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from experiments.history.changes import RunChanges
from experiments.history.series import Series
from experiments.report.words import ICONS
from experiments.results.wording import format_number, quantity_label, quantity_unit
from experiments.system.tables import Column, Table

BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN = ("peak_gib", "reserved_gib", "step_s", "samples_per_s", "last_loss")
CSV_COLUMNS = ("suite", "card", "size", "length", "run_id", "started_at", "commit", "row", "quantity", "value")
MARKS: dict[str, str] = {str(status): icon for status, icon in ICONS.items()}
STYLES = {"pass": "green", "fail": "red", "error": "red"}


def history_tables(found: Sequence[tuple[Series, list[RunChanges]]]) -> Group:
    """Return the changes, the verdicts and the figures of each series."""
    parts: list[RenderableType] = []
    for series, changed in found:
        first, last = series.runs[0].started_at[:10], series.runs[-1].started_at[:10]
        runs = "1 run" if len(series.runs) == 1 else f"{len(series.runs)} runs"
        parts += [Text(f"{series.title}: {runs}, {first} to {last}", "bold"), *_changes(changed)]
        parts += [_verdicts(series), _figures(series), Text()]
    return Group(*parts)


def _changes(changed: Sequence[RunChanges]) -> list[Text]:
    if not changed:
        return [Text("nothing changed")]
    lines = []
    for one in reversed(changed):
        lines.append(Text(f"changed in {one.run.name}, commit {one.run.commit[:12] or 'unknown'}", "yellow"))
        lines += [Text(f"  {change.sentence}") for change in one.changed]
        lines += [Text(f"  flipped within noise: {flip.sentence}", "dim") for flip in one.borderline]
        causes = "; ".join(cause.sentence for cause in one.causes) or "no version, device, code or data"
        lines.append(Text(f"  what else differs: {causes}", "dim"))
    return lines


def _verdicts(series: Series) -> Table:
    table = Table(Column("statement", prose=True), "verdicts, newest last")
    for says, statuses in series.grid:
        marks = [Text(MARKS.get(status, " "), STYLES.get(status, "dim")) for status in statuses]
        table.add(says, Text.assemble(*marks))
    return table


def _figures(series: Series) -> Table:
    table = Table("row", "figure", "over time", Column("first", number=True), Column("last", number=True), "unit")
    for key in series.keys:
        known = [value for value in series.values(key) if value is not None]
        if key[1] in SHOWN and known:
            ends = (format_number(known[0]), format_number(known[-1]))
            table.add(key[0], quantity_label(key[1]), sparkline(series.values(key)), *ends, quantity_unit(key[1]))
    return table


def sparkline(values: Sequence[float | None]) -> str:
    """Return one character for each value, from the lowest to the highest; a space where there is none."""
    known = [value for value in values if value is not None]
    low, span = min(known), max(known) - min(known)
    steps = [None if one is None else (one - low) / span if span else 0.0 for one in values]
    return "".join(" " if step is None else BLOCKS[round(step * (len(BLOCKS) - 1))] for step in steps)


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
                "run_id": one.run.run_id,
                "started_at": one.run.started_at,
                "changed": [change._asdict() for change in one.changed],
                "borderline": [flip._asdict() for flip in one.borderline],
                "differs": [cause._asdict() for cause in one.causes],
            }
            for one in changed
        ],
    }


def write_csv(path: Path, several: Sequence[Series]) -> None:
    """Write one line for each figure of each run."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(CSV_COLUMNS)
        for series in several:
            for run in series.runs:
                head = (*series[:4], run.run_id, run.started_at, run.commit)
                lines.writerows((*head, *key, figure.value) for key, figure in run.figures.items())
