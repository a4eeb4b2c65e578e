"""Tables of evaluated runs: all statements of a single run, or one line for each of several runs; CSV files."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.cli.tables.verdicts import changes_table, status_count, verdict_table
from experiments.report.words import STATUSES
from experiments.report.write import Reevaluation
from experiments.system.files import open_output
from experiments.system.tables import Column, Table, print_lines

CSV_COLUMNS = ("folder", "run_id", "suite", "card", "size", "started_at", *STATUSES, "files_changed")


def print_evaluations(evaluated: Sequence[Reevaluation], root: Path, show_all: bool, console: Console) -> None:
    """Print a single run with its statements, or several runs as one line each.

    show_all: whether to print every statement of each run, too.
    """
    for reevaluation in evaluated if show_all or len(evaluated) == 1 else ():
        console.print(verdict_table(reevaluation.evaluation, show_all))
        if reevaluation.changes:
            console.print(changes_table(reevaluation.changes))
        _warn_of_changed_files(reevaluation, console)
    if len(evaluated) > 1:
        console.print(_summary_table(evaluated, root))


def _warn_of_changed_files(reevaluation: Reevaluation, console: Console) -> None:
    if reevaluation.files_changed:
        print_lines(
            console, f"files that differ from the run's SHA256SUMS: {', '.join(reevaluation.files_changed)}", "bold red"
        )


def _summary_table(evaluated: Sequence[Reevaluation], root: Path) -> Table:
    """Return a table with one line for each run. Runs with failures or changed files come first."""
    counts = (Column(status, number=True) for status in STATUSES)
    table = Table(
        "folder", Column("suite", optional=1), *counts, Column("files", prose=True), title=f"{len(evaluated)} runs"
    )
    for reevaluation in sorted(evaluated, key=_problem_counts, reverse=True):
        statuses = (status_count(status, reevaluation.evaluation.count(status)) for status in STATUSES)
        table.add(
            _run_name(reevaluation, root),
            reevaluation.evaluation.run.suite,
            *statuses,
            _changed_files_text(reevaluation),
        )
    return table


def _problem_counts(reevaluation: Reevaluation) -> tuple[int, int, int]:
    return (
        len(reevaluation.files_changed or ()),
        reevaluation.evaluation.count("error"),
        reevaluation.evaluation.count("fail"),
    )


def _run_name(reevaluation: Reevaluation, root: Path) -> str:
    return reevaluation.folder.relative_to(root).as_posix()


def _changed_files_text(reevaluation: Reevaluation) -> Text:
    if reevaluation.files_changed is None:
        return Text("no SHA256SUMS", "dim")
    if not reevaluation.files_changed:
        return Text("unchanged")
    return Text(f"{len(reevaluation.files_changed)} changed: {', '.join(reevaluation.files_changed)}", "bold red")


def write_csv(path: Path, evaluated: Sequence[Reevaluation], root: Path) -> None:
    """Write one line for each run: its folder, options, numbers of statements by status, and changed files.

    The column files_changed is empty if no file has changed, and 'unknown' for a run without SHA256SUMS. Raises
    InputError if ``path`` cannot be written.
    """
    with open_output(path, "--csv") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for reevaluation in evaluated:
            run = reevaluation.evaluation.run
            files = "unknown" if reevaluation.files_changed is None else " ".join(reevaluation.files_changed)
            options = (run.run_id, run.suite, run.card, run.size, run.started_at)
            writer.writerow(
                [_run_name(reevaluation, root), *options, *map(reevaluation.evaluation.count, STATUSES), files]
            )
