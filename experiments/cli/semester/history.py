"""`testbed history`: record runs in a database; show verdicts, measured values and changes over time."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import console, print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import HISTORY_DATABASE, Json, SuiteFileOfRun
from experiments.errors import InputError
from provision.words import number_with_noun

app = Commands()
RECORD = "record"


@app.command()
def history(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="SUITE[/ROW] | record RUN_FOLDER", help="Record runs, or show a suite or a row."),
    ] = None,
    database: Annotated[Path, typer.Option(help="The SQLite database of the history.")] = HISTORY_DATABASE,
    suite_file: SuiteFileOfRun = None,  # noqa: ARG001 - its callback uses it
    page: Annotated[Path | None, typer.Option(help="Also write a page with verdicts and trends to this file.")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Also write the measured values of all runs to this CSV file.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_URI", help="Also add every run to this MLflow server, database or folder."),
    ] = None,
    fail_on_change: Annotated[
        bool,
        typer.Option(
            "--fail-on-change",
            help="Exit with code 1 if the newest run of a suite differs from earlier runs with the same options.",
        ),
    ] = False,
    details: Annotated[
        bool, typer.Option("--all", help="Show every statement and measured value over time, not one line per row.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Record runs; show what changed, and which versions differ.

    testbed history record RUN_FOLDER... adds runs to the database, each only once. Without record, the command shows
    the runs in which a verdict flipped, a setting changed, or a value changed beyond its noise. For each of these runs,
    it shows the versions, devices and data that differ from the run before. Then each row has a line with its memory
    and time over all runs, newest last. For a single row, or with --all, every statement and measured value is shown
    over time.
    """
    if words and words[0] == RECORD:
        _record(words[1:], database, as_json)
        return
    if len(words or []) > 1:
        raise InputError(f"history {' '.join(words or [])}: allowed: one SUITE or SUITE/ROW, or record RUN_FOLDER...")
    from experiments.cli.tables.history import changes_as_data, history_tables, write_csv
    from experiments.history.changes import run_changes
    from experiments.history.database import open_history
    from experiments.history.series import read_series

    suite, _, row = words[0].partition("/") if words else ("", "", "")
    with open_history(database) as connection:
        all_series = read_series(connection, suite or None, row or None)
    changes_of_series = [(series, run_changes(series)) for series in all_series]
    if csv:
        write_csv(csv, all_series)
    if mlflow:
        from experiments.history.mlflow_export import export_to_mlflow

        say(f"{number_with_noun(export_to_mlflow(mlflow, all_series), 'run')} added to MLflow", stderr=True)
    if page:
        from experiments.history.page import write_history_page

        say(str(write_history_page(page, changes_of_series)), stderr=True)
    if as_json:
        print_json([changes_as_data(series, changed) for series, changed in changes_of_series])
    else:
        console().print(history_tables(changes_of_series, details or bool(row)))
    newest = [changed and changed[-1].run is series.runs[-1] for series, changed in changes_of_series]
    raise typer.Exit(int(fail_on_change and any(newest)))


def _record(folders: list[str], database: Path, as_json: bool) -> None:
    from experiments.history.database import open_history, record_run
    from experiments.results.run_folder import run_folders

    if not folders:
        raise InputError("history record: needs the folder of a run, or a folder of several runs")
    runs = [run for folder in folders for run in run_folders(Path(folder))]
    with open_history(database, create=True) as connection:
        recorded = {str(run.path): record_run(connection, run) for run in runs}
    if as_json:
        print_json(recorded)
        return
    for path, new in recorded.items():
        say(f"{path}: {'recorded' if new else 'already recorded'}")
