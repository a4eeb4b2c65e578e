"""`testbed predict` and `fit`: GPU memory of rows and of custom trainings, without a GPU."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.options import Json, expand_options
from experiments.cli.output import print_json, progress, wide_console
from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.system.options import options_of

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

app = typer.Typer()
Rows = Annotated[str | None, typer.Argument(metavar="SUITE[/ROW]", help="Rows of a suite; default: of all suites.")]


@app.command()
@expand_options
def predict(context: typer.Context, training: CustomTraining, rows: Rows = None, as_json: Json = False) -> None:
    """Predict the GPU memory of rows, or of a custom training, without a GPU."""
    from experiments.prediction.service import reject_if_parameters_exceed, traced
    from experiments.prediction.tables import prediction_as_data, prediction_tables

    specs, custom = _specs(context, rows, training), "model" in _given(context)
    failures: list[Exception] = []
    with progress() as say:
        predictions = traced(specs, say, lambda spec, problem: failures.append(problem))
    if custom and predictions:
        reject_if_parameters_exceed(predictions[0])
    data = [prediction_as_data(prediction) for prediction in predictions]
    if as_json:
        print_json(data[0] if custom and data else data)
    elif predictions:
        wide_console().print(prediction_tables(predictions))
    for problem in failures:
        print(problem, file=sys.stderr)
    if failures:
        raise typer.Exit(2 if any(isinstance(problem, InputError) for problem in failures) else 3)


@app.command()
@expand_options
def fit(context: typer.Context, training: CustomTraining, rows: Rows = None, as_json: Json = False) -> None:
    """Find the largest batch that fits, and single changes that make a row fit."""
    from experiments.prediction.fit import fit as fit_row
    from experiments.prediction.service import traced
    from experiments.prediction.tables import fit_as_data, fit_view

    custom = "model" in _given(context)
    if not custom and "/" not in (rows or ""):
        raise InputError("fit: SUITE/ROW or --model is required")
    specs = _specs(context, rows, training)
    with progress() as say:
        fits = [fit_row(spec, lambda specs: traced(specs, say)) for spec in specs]
    if as_json:
        data = [fit_as_data(one) for one in fits]
        print_json(data[0] if custom else data)
    else:
        for one in fits:
            wide_console().print(fit_view(one))


def _given(context: typer.Context) -> set[str]:
    """Return the options of a custom training that are set on the command line."""
    sources = {field.name: context.get_parameter_source(field.name) for field, _ in options_of(CustomTraining)}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _specs(context: typer.Context, rows: str | None, training: CustomTraining) -> "list[RowSpec]":
    """Return the rows to predict: rows of suites, or the row of a custom training."""
    from experiments.prediction.service import rows_asked

    given = _given(context)
    if "model" not in given:
        if own := given - {"card"}:
            raise InputError(f"--{min(own).replace('_', '-')}: needs --model; a row has its own settings")
        return rows_asked(rows, training.card if "card" in given else None)
    if rows is not None:
        raise InputError(f"--model {training.model}: allowed without {rows!r} only")
    if "card" not in given:
        from experiments.suites.cards import cards

        raise InputError(f"--model {training.model}: needs --card, one of {', '.join(cards())}")
    return [training.spec]
