"""`testbed evaluate | report | compare | list | schema`: stored results, and the contents of suites."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import console, print_json
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, RunPath, SuiteFile
from experiments.errors import InputError, unknown

app = Commands()


@app.command()
def evaluate(folder: RunPath, suite_file: SuiteFile = None, as_json: Json = False) -> None:  # noqa: ARG001 - its callback uses it
    """Evaluate stored results with the current suites; write nothing."""
    from experiments.cli.tables import changes_table, verdict_table
    from experiments.report import reevaluate

    evaluated = reevaluate(folder)
    if as_json:
        print_json([one.model_dump(mode="json") for one in evaluated])
    else:
        for one in evaluated:
            console().print(verdict_table(one.evaluation))
            if one.changes:
                console().print(changes_table(one.changes))
    raise typer.Exit(max(one.evaluation.exit_code for one in evaluated))


@app.command()
def report(folder: RunPath, suite_file: SuiteFile = None) -> None:  # noqa: ARG001 - its callback uses it
    """Write the report of a run again."""
    from experiments.report import write_report
    from experiments.results.run_folder import RunFolder

    print(write_report(RunFolder(folder)).page)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another run of the same suite.")],
    suite_file: SuiteFile = None,  # noqa: ARG001 - its callback uses it
    as_json: Json = False,
) -> None:
    """Compare two runs of one suite."""
    from experiments.report import compare as compare_runs
    from experiments.report import comparison_table
    from experiments.results.run_folder import RunFolder

    comparison = compare_runs(RunFolder(a), RunFolder(b))
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        console().print(comparison_table(comparison))


@app.command("list")
def list_(
    suite: Annotated[str | None, typer.Argument(help="Show the rows and settings of this suite.")] = None,
    card: Annotated[str | None, typer.Option(help="Show settings for this card; default: the suite's first.")] = None,
    suite_file: SuiteFile = None,
    as_json: Json = False,
) -> None:
    """List the suites, or the rows of one."""
    from experiments.cli.suite_tables import rows_as_data, rows_table, suites_as_data, suites_table
    from experiments.suites.suite import own_suites

    if suite is None and suite_file and len(own := own_suites()) == 1:
        (suite,) = own
    if suite is None and card:
        raise InputError("--card: allowed with a suite only")
    if as_json:
        print_json(rows_as_data(suite, card) if suite else suites_as_data())
    else:
        console().print(rows_table(suite, card) if suite else suites_table())


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(help="Only this one: suite, result, run, verdict, predictions.")] = None,
) -> None:
    """Print the JSON schemas of suites and of the files of a run.

    An editor completes the keys of your own suite with: testbed schema suite > suite.schema.json
    """
    from pydantic import BaseModel

    from experiments.results.run_folder import Predictions, Run
    from experiments.results.schema import Result
    from experiments.results.verdicts import Evaluation
    from experiments.suites.schema import suite_json_schema

    models: dict[str, type[BaseModel]] = {
        "result": Result,
        "run": Run,
        "verdict": Evaluation,
        "predictions": Predictions,
    }
    schemas = {"suite": suite_json_schema()} | {key: model.model_json_schema() for key, model in models.items()}
    if name is not None and name not in schemas:
        raise unknown("schema", name, schemas)
    print_json(schemas if name is None else schemas[name])
