"""`testbed evaluate | report | compare | list | schema`: stored results, and the contents of suites."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.output import console, print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import HISTORY_DATABASE, Json, RunPath, RunPaths, SuiteFile, SuiteFileOfRun
from experiments.errors import InputError, unknown_name_error

app = Commands()


@app.command()
def evaluate(
    folders: RunPaths,
    suite_file: SuiteFileOfRun = None,  # noqa: ARG001 - its callback uses it
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every statement of each run, including those not evaluated.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write one line for each run to this CSV file.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate stored results with current suites; verify checksums.

    For a folder of several runs, such as the runs of a class, the command prints one line for each run. Several folders
    are evaluated together, as if they were one run: they must be runs of one suite on one card. Then the command also
    evaluates statements that compare rows of different runs.

    No report is written. Exit code 1: a statement fails, or a file has changed since SHA256SUMS was written; 2: a run
    cannot be read.
    """
    from experiments.cli.tables.evaluations import print_evaluations, write_csv
    from experiments.report.write import reevaluate, reevaluate_together

    problems: list[InputError] = []
    folder = folders[0]
    evaluated = (reevaluate_together(folders),) if len(folders) > 1 else reevaluate(folder, problems.append)
    if csv:
        write_csv(csv, evaluated, folder)
    if as_json:
        print_json([one.model_dump(mode="json") for one in evaluated])
    else:
        print_evaluations(evaluated, folder, show_all, console())
    for problem in problems:
        say(f"testbed: {problem}", stderr=True)
    codes = [one.evaluation.exit_code or int(bool(one.files_changed)) for one in evaluated]
    raise typer.Exit(max([*codes, 2 if problems else 0]))


@app.command()
def report(
    folder: RunPath,
    suite_file: SuiteFileOfRun = None,  # noqa: ARG001 - its callback uses it
    as_zip: Annotated[
        bool, typer.Option("--zip", help="Also write an archive of the report and all files that it links to.")
    ] = False,
) -> None:
    """Write a run's report again; for several runs, also their index.

    For a folder of several runs, an index.html of all runs is written, too. Statements whose status has changed since
    the last report are shown.
    """
    from experiments.cli.tables.verdicts import changes_table
    from experiments.report.archive import write_archive
    from experiments.report.pages.index import write_index
    from experiments.report.write import write_report
    from experiments.results.run_folder import RUN_FILE, RunFolder

    single = (folder / RUN_FILE).is_file()
    folders = [folder] if single else sorted(path.parent for path in folder.glob(f"*/{RUN_FILE}"))
    for run in [RunFolder(path) for path in folders if single or not path.is_symlink()] or [RunFolder(folder)]:
        written = write_report(run)
        print(written.page)
        if as_zip:
            print(write_archive(run))
        if written.changes:
            console(stderr=True).print(changes_table(written.changes))
    if not single:
        print(write_index(folder))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another run of the same suite.")],
    suite_file: SuiteFileOfRun = None,  # noqa: ARG001 - its callback uses it
    database: Annotated[
        Path, typer.Option(help="Database of earlier runs, which show how much values vary; may be missing.")
    ] = HISTORY_DATABASE,
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help="Also exit with code 1 if only a value changed.")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a page that needs no network.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two runs of one suite.

    First shows the statements whose status differs, then all rows. In both tables, what became worse comes first. Then
    shows the values that changed beyond their noise, and the options, settings and versions that differ. The noise of a
    value is how much it varies between the runs in the history's database. The exit code is 1 if a statement's status
    or a row's outcome changed.
    """
    from experiments.cli.tables.comparison import comparison_tables
    from experiments.history.series import recorded_values
    from experiments.report.compare import compare as compare_runs
    from experiments.report.pages.comparison import write_comparison
    from experiments.results.run_folder import RunFolder

    comparison = compare_runs(RunFolder(a), RunFolder(b), recorded_values(database, RunFolder(a)))
    if page:
        write_comparison(page, comparison)
        say(f"page: {page}", stderr=True)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        console().print(comparison_tables(comparison))
    raise typer.Exit(int(comparison.status_or_outcome_changed or (fail_on_change and bool(comparison.changed))))


@app.command("list")
def list_(
    suite: Annotated[str | None, typer.Argument(help="Show the rows and settings of this suite.")] = None,
    card: Annotated[str | None, typer.Option(help="Show settings for this card; default: the suite's first.")] = None,
    suite_file: SuiteFile = None,
    as_json: Json = False,
) -> None:
    """List the suites, or the rows of one."""
    from experiments.cli.tables.suites import rows_as_data, rows_table, suites_as_data, suites_table
    from experiments.suites.suite import user_suites

    if suite is None and suite_file and len(names := user_suites()) == 1:
        (suite,) = names
    if suite is None and card:
        raise InputError("--card: allowed with a suite only")
    if as_json:
        print_json(rows_as_data(suite, card) if suite else suites_as_data())
    else:
        console().print(rows_table(suite, card) if suite else suites_table())


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(help="Print only this schema: suite, result, run, verdict, predictions.")
    ] = None,
) -> None:
    """Print the JSON schemas of suites and of the files of a run.

    An editor that has the schema completes the keys of your own suite: testbed schema suite > suite.schema.json
    """
    from experiments.results.run_folder import Predictions, Run
    from experiments.results.schema import Result
    from experiments.results.verdicts import Evaluation
    from experiments.suites.schema import suite_json_schema

    schemas: dict[str, Callable[[], dict[str, Any]]] = {
        "suite": suite_json_schema,
        "result": Result.model_json_schema,
        "run": Run.model_json_schema,
        "verdict": Evaluation.model_json_schema,
        "predictions": Predictions.model_json_schema,
    }
    if name is not None and name not in schemas:
        raise unknown_name_error("schema", name, schemas)
    print_json({key: schema() for key, schema in schemas.items()} if name is None else schemas[name]())
