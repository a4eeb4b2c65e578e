"""`testbed evaluate | report | compare | list | schema`: stored results, and the contents of suites."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import console, print_json
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, RunPath, RunPaths
from experiments.errors import InputError

app = Commands()


@app.command()
def evaluate(folders: RunPaths, as_json: Json = False) -> None:
    """Evaluate stored results with the current suites; write nothing.

    Several folders are runs of one suite on one card, and are evaluated together: statements that compare rows of
    several runs have a verdict then.
    """
    from experiments.cli.tables import changes_table, verdict_table
    from experiments.report import reevaluate, reevaluate_together

    if len(folders) > 1:
        together = reevaluate_together(folders)
        if as_json:
            print_json(together.model_dump(mode="json"))
        else:
            console().print(verdict_table(together))
        raise typer.Exit(together.exit_code)
    evaluated = reevaluate(folders[0])
    if as_json:
        print_json([one.model_dump(mode="json") for one in evaluated])
    else:
        for one in evaluated:
            console().print(verdict_table(one.evaluation))
            if one.changes:
                console().print(changes_table(one.changes))
    raise typer.Exit(max(one.evaluation.exit_code for one in evaluated))


@app.command()
def report(folder: RunPath) -> None:
    """Write the report of a run again."""
    from experiments.report import write_report
    from experiments.results.run_folder import RunFolder

    print(write_report(RunFolder(folder)).page)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another run of the same suite.")],
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
    as_json: Json = False,
) -> None:
    """List the suites, or the rows of one."""
    from experiments.cli.suite_tables import rows_as_data, rows_table, suites_as_data, suites_table

    if suite is None and card:
        raise InputError("--card: allowed with a suite only")
    if as_json:
        print_json(rows_as_data(suite, card) if suite else suites_as_data())
    else:
        console().print(rows_table(suite, card) if suite else suites_table())


@app.command()
def schema() -> None:
    """Print the JSON schemas of the files of a run.

    These are result.json, run.json, verdict.json and predictions.json.
    """
    from pydantic import BaseModel

    from experiments.results.run_folder import Predictions, Run
    from experiments.results.schema import Result
    from experiments.results.verdicts import Evaluation

    models: dict[str, type[BaseModel]] = {
        "result": Result,
        "run": Run,
        "verdict": Evaluation,
        "predictions": Predictions,
    }
    print_json({name: model.model_json_schema() for name, model in models.items()})
