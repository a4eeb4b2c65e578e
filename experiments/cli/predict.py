"""`testbed predict` and `fit`: GPU memory of rows and of custom trainings, without a GPU."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.output import print_json, progress, wide_console
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, Without, expand_options
from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.script.options import ScriptOptions
from experiments.system.options import options_of

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

app = Commands()
Rows = Annotated[str | None, typer.Argument(metavar="SUITE[/ROW]", help="Rows of a suite; default: of all suites.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="SUITE[/ROW] | -- COMMAND", help="Rows of a suite, or a training script's command line."),
]
Training = Annotated[CustomTraining, Without("card", "batch")]
Cards = Annotated[
    str, typer.Option(metavar="CARD,...", help="GPU models, or all; default for rows: all GPU models of the row.")
]
Batches = Annotated[str, typer.Option(metavar="N,...", help="Samples per GPU and micro-step; several are compared.")]


@app.command()
@expand_options
def predict(
    context: typer.Context,
    training: Training,
    script: ScriptOptions,
    words: Words = None,
    card: Cards = "",
    batch: Batches = "1",
    as_json: Json = False,
) -> None:
    """Predict GPU memory of rows, models and scripts, without a GPU.

    A script's command comes after `--`: testbed predict --card all -- python train.py. It runs unchanged on a GPU that
    does not exist, until it has taken enough optimizer steps.
    """
    if command := _command_after_dashes(context):
        _predict_script(context, card, command, script, as_json)
        return
    if own := _given(context, ScriptOptions):
        raise InputError(f"--{_flag(min(own))}: needs a script's command after --")
    if len(words or ()) > 1:
        raise InputError(f"predict {' '.join(words or ())}: one SUITE[/ROW] is allowed; a script's command follows --")
    specs = _specs(context, words[0] if words else None, training, card, batch)
    _predict_rows(specs, "model" in _given(context), as_json)


def _predict_rows(specs: "Sequence[RowSpec]", custom: bool, as_json: bool) -> None:
    from experiments.prediction.question import question_as_data, question_view
    from experiments.prediction.service import reject_if_parameters_exceed, traced
    from experiments.prediction.tables import prediction_as_data, prediction_tables

    failures: list[Exception] = []
    with progress() as say:
        predictions = traced(specs, say, lambda spec, problem: failures.append(problem))
    if custom and len(specs) == len(predictions) == 1:
        reject_if_parameters_exceed(predictions[0])
    if as_json:
        as_data = question_as_data if custom and predictions else lambda found: [*map(prediction_as_data, found)]
        print_json(as_data(predictions))
    elif predictions:
        wide_console().print(question_view(predictions) if custom else prediction_tables(predictions))
    for problem in failures:
        print(problem, file=sys.stderr)
    if failures:
        raise typer.Exit(2 if any(isinstance(problem, InputError) for problem in failures) else 3)


@app.command()
@expand_options
def fit(
    context: typer.Context,
    training: Training,
    rows: Rows = None,
    card: Cards = "",
    batch: Batches = "1",
    as_json: Json = False,
) -> None:
    """Find the largest batch that fits, and changes that save memory."""
    from experiments.prediction.fit import fit as fit_row
    from experiments.prediction.question import question_in_words
    from experiments.prediction.service import traced
    from experiments.prediction.tables import fit_as_data, fit_view

    custom = "model" in _given(context)
    if not custom and "/" not in (rows or ""):
        raise InputError("fit: SUITE/ROW or --model is required")
    specs = _specs(context, rows, training, card, batch)
    with progress() as say:
        fits = [fit_row(spec, lambda specs: traced(specs, say)) for spec in specs]
    if as_json:
        data = [fit_as_data(one) for one in fits]
        print_json(data[0] if custom and len(data) == 1 else data)
    else:
        for one in fits:
            if custom:
                print(question_in_words(one.asked))
            wide_console().print(fit_view(one))


def _predict_script(
    context: typer.Context, card: str, command: list[str], script: ScriptOptions, as_json: bool
) -> None:
    from experiments.prediction.script.trace import ScriptFailed, trace_script
    from experiments.prediction.script.view import as_data, view
    from experiments.suites.cards import cards_named

    if other := _given(context, CustomTraining) - {"card"}:
        raise InputError(f"--{_flag(min(other))}: not with a script, which has its own settings")
    with progress() as say:
        try:
            found = trace_script(command, cards_named(card or "all"), say, script)
        except ScriptFailed as failed:
            print(f"testbed: {failed}", file=sys.stderr)
            raise typer.Exit(failed.code if failed.code > 0 else 128 - failed.code) from None
    if as_json:
        print_json(as_data(found))
    else:
        wide_console().print(view(found))
    if script.page:
        from experiments.report.script_page import write_page

        write_page(script.page, command, found)
        print(f"page: {script.page}", file=sys.stderr)
    needed = max(answer.needed_gib for one in found for answer in one.cards)
    if script.max_gib is not None and needed > script.max_gib:
        print(f"testbed: {needed:.2f} GiB are needed, more than --max-gib {script.max_gib:g}", file=sys.stderr)
        raise typer.Exit(1)


def _command_after_dashes(context: typer.Context) -> list[str]:
    """Return the words after `--`; context.obj is the whole command line."""
    words = shlex.split(context.obj)
    return words[words.index("--") + 1 :] if "--" in words else []


def _flag(name: str) -> str:
    """Return the option's name as it is typed, without the dashes in front."""
    declared = {field.name: option for cls in (CustomTraining, ScriptOptions) for field, option in options_of(cls)}
    return declared[name].name_of(name).replace("_", "-")


def _given(context: typer.Context, cls: type = CustomTraining) -> set[str]:
    """Return the options of a dataclass that are set on the command line."""
    sources = {field.name: context.get_parameter_source(field.name) for field, _ in options_of(cls)}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _specs(
    context: typer.Context, rows: str | None, training: CustomTraining, card: str, batch: str
) -> "list[RowSpec]":
    """Return the rows to predict: rows of suites, or a row for each card and batch of a custom training."""
    from experiments.prediction.service import rows_asked
    from experiments.suites.cards import cards, cards_named

    if "model" not in (given := _given(context)):
        if own := given - {"card"}:
            raise InputError(f"--{min(own).replace('_', '-')}: needs --model; a row has its own settings")
        chosen = cards_named(card) if card not in ("", "all") else [None]
        return [spec for one in chosen for spec in rows_asked(rows, one)]
    if rows is not None:
        raise InputError(f"--model {training.model}: allowed without {rows!r} only")
    if "card" not in given:
        raise InputError(f"--model {training.model}: needs --card, one of {', '.join(cards())}, or all")
    batches = _batches(batch)
    return [replace(training, card=name, batch=size).spec for name in cards_named(card) for size in batches]


def _batches(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        raise InputError(f"--batch {text}: allowed: whole numbers from 1, such as 4 or 1,2,4") from None
