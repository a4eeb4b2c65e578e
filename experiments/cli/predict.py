"""`testbed predict` and `fit`: GPU memory of rows and of custom trainings, without a GPU."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.output import console, print_json, progress, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, SuiteFile, Without, expand_options
from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.script.options import ScriptOptions
from experiments.system.options import options_of

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

app = Commands()
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="SUITE[/ROW] | -- COMMAND", help="Rows of a suite, or a training script's command line."),
]
BatchFlag = Annotated[
    str | None, typer.Option(metavar="FLAG", help="Script: its own option for the batch, such as --batch-size.")
]
Training = Annotated[CustomTraining, Without("card", "batch")]
Cards = Annotated[
    str, typer.Option(metavar="CARD,...", help="GPU models or sizes (24GiB), or all; default for rows: all of the row.")
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
    suite_file: SuiteFile = None,  # noqa: ARG001 - _specs reads it from the context
    as_json: Json = False,
) -> None:
    """Predict GPU memory of rows, models and scripts, without a GPU.

    A script's command comes after `--`: testbed predict --card all -- python train.py. It runs unchanged on a GPU that
    does not exist, until it has taken enough optimizer steps.
    """
    if command := _command_after_dashes(context):
        _predict_script(context, card, command, script, as_json)
        return
    _reject_options_of_scripts(context)
    if len(words or ()) > 1:
        raise InputError(f"predict {' '.join(words or ())}: one SUITE[/ROW] is allowed; a script's command follows --")
    rows = words[0] if words else None
    if _in_program(context, rows, training):
        _predict_programs(training, card, _batches(batch), as_json)
    else:
        _predict_rows(_specs(context, rows, training, card, batch), "model" in _given(context), as_json)


def _predict_rows(specs: "Sequence[RowSpec]", custom: bool, as_json: bool) -> None:
    from experiments.prediction.question import question_as_data, question_view
    from experiments.prediction.service import reject_if_parameters_exceed, traced
    from experiments.prediction.tables import prediction_as_data, prediction_tables

    failures: list[Exception] = []
    with progress() as show:
        predictions = traced(specs, show, lambda spec, problem: failures.append(problem))
    if custom and len(specs) == len(predictions) == 1:
        reject_if_parameters_exceed(predictions[0])
    if as_json:
        as_data = question_as_data if custom and predictions else lambda found: [*map(prediction_as_data, found)]
        print_json(as_data(predictions))
    elif predictions:
        console().print(question_view(predictions) if custom else prediction_tables(predictions))
    for problem in failures:
        say(str(problem), stderr=True)
    if failures:
        raise typer.Exit(2 if any(isinstance(problem, InputError) for problem in failures) else 3)


@app.command()
@expand_options
def fit(
    context: typer.Context,
    training: Training,
    script: Annotated[ScriptOptions, Without("max_gib", "page")],
    rows: Words = None,
    card: Cards = "",
    batch: Batches = "1",
    batch_flag: BatchFlag = None,
    suite_file: SuiteFile = None,  # noqa: ARG001 - _specs reads it from the context
    as_json: Json = False,
) -> None:
    """Find the largest batch that fits, and changes that save memory.

    For a training script: testbed fit --card a100_80gb --batch-flag --batch -- python train.py
    """
    if command := _command_after_dashes(context):
        _fit_script(context, card, command, batch_flag, script, as_json)
        return
    _reject_options_of_scripts(context)
    if len(rows or ()) > 1:
        raise InputError(f"fit {' '.join(rows or ())}: one SUITE/ROW is allowed; a script's command follows --")
    row = rows[0] if rows else None
    if _in_program(context, row, training):
        _fit_programs(training, card, _batches(batch), as_json)
    else:
        _fit_rows(context, row, training, card, batch, as_json)


def _in_program(context: typer.Context, rows: str | None, training: CustomTraining) -> bool:
    """Return whether a custom training is a small program to trace, rather than a row; check what both need."""
    from experiments.prediction.loop import OF_ROWS

    given = _given(context)
    if "model" not in given:
        return False
    if rows is not None:
        raise InputError(f"--model {training.model}: allowed without {rows!r} only")
    if "card" not in given:
        from experiments.suites.cards import SIZES, cards

        raise InputError(f"--model {training.model}: needs --card, one of {', '.join(cards())}, {SIZES}, or all")
    return training.loop not in OF_ROWS


def _predict_programs(training: CustomTraining, card: str, batches: list[int], as_json: bool) -> None:
    from experiments.prediction.loop import assumed, command
    from experiments.prediction.script.trace import trace_script
    from experiments.prediction.script.view import as_data, view
    from experiments.suites.cards import cards_named

    names, data = cards_named(card), []
    for one in (replace(training, card=names[0], batch=size) for size in batches):
        words = command(one)
        with progress() as show, _exit_code_of_script():
            found = trace_script(words, names, show, ScriptOptions(), f"{one.model}, batch {one.batch}")
        data.append({"assumed": assumed(one), "loop": one.loop, **as_data(found)})
        if not as_json:
            console().print(assumed(one), view(found), sep="\n")
    if as_json:
        print_json(data[0] if len(data) == 1 else data)


def _fit_programs(training: CustomTraining, card: str, batches: list[int], as_json: bool) -> None:
    from experiments.prediction.loop import assumed
    from experiments.prediction.loop_fit import attempts, attempts_as_data, attempts_table, fit_program
    from experiments.prediction.script.fit import fit_as_data, fit_view
    from experiments.suites.cards import cards_named

    data = []
    for one in (replace(training, card=name, batch=size) for name in cards_named(card) for size in batches):
        with progress() as show, _exit_code_of_script():
            found = fit_program(one, show)
            tried = attempts(one, found, show)
        changes = attempts_as_data(tried)
        data.append({"assumed": assumed(one), "loop": one.loop, **fit_as_data(found), "changes": changes})
        if not as_json:
            console().print(assumed(one), fit_view(found, "--batch"), attempts_table(tried), sep="\n")
    if as_json:
        print_json(data[0] if len(data) == 1 else data)


def _fit_rows(
    context: typer.Context, rows: str | None, training: CustomTraining, card: str, batch: str, as_json: bool
) -> None:
    from experiments.prediction.fit import fit as fit_row
    from experiments.prediction.question import question_in_words
    from experiments.prediction.service import traced
    from experiments.prediction.tables import fit_as_data, fit_view

    custom = "model" in _given(context)
    if not custom and "/" not in (rows or ""):
        raise InputError("fit: SUITE/ROW or --model is required")
    specs = _specs(context, rows, training, card, batch)
    with progress() as show:
        fits = [fit_row(spec, lambda specs: traced(specs, show)) for spec in specs]
    if as_json:
        data = [fit_as_data(one) for one in fits]
        print_json(data[0] if custom and len(data) == 1 else data)
    else:
        for one in fits:
            if custom:
                say(question_in_words(one.asked))
            console().print(fit_view(one))


def _fit_script(
    context: typer.Context, card: str, command: list[str], flag: str | None, script: ScriptOptions, as_json: bool
) -> None:
    from experiments.prediction.script.fit import FIRST_BATCH, batch_in, fit_as_data, fit_batches, fit_view, with_batch
    from experiments.prediction.script.trace import trace_script
    from experiments.suites.cards import SIZES, card_to_predict, cards

    _reject_options_of_models(context)
    if flag is None:
        raise InputError("fit -- COMMAND: needs --batch-flag, the script's option for its batch, such as --batch-size")
    if not card:
        raise InputError(f"fit -- COMMAND: needs --card, one of {', '.join(cards())}, {SIZES}")
    if card == "all":
        raise InputError(f"fit -- COMMAND: --card all: needs one card of {', '.join(cards())}, {SIZES}")
    card_to_predict(card, "--card")
    first = batch_in(command, flag) or FIRST_BATCH
    with progress() as show, _exit_code_of_script():
        found = fit_batches(first, lambda batch: trace_script(with_batch(command, flag, batch), [card], show, script))
    if as_json:
        print_json(fit_as_data(found))
    else:
        console().print(fit_view(found, flag))


@contextmanager
def _exit_code_of_script() -> Iterator[None]:
    """End with the exit code of a script that fails."""
    from experiments.prediction.script.trace import ScriptFailed

    try:
        yield
    except ScriptFailed as failed:
        say(f"testbed: {failed}", stderr=True)
        raise typer.Exit(failed.code if failed.code > 0 else 128 - failed.code) from None


def _reject_options_of_scripts(context: typer.Context) -> None:
    if own := _given(context, ScriptOptions):
        raise InputError(f"--{_flag(min(own))}: needs a script's command after --")


def _reject_options_of_models(context: typer.Context) -> None:
    if other := _given(context, CustomTraining) - {"card"}:
        raise InputError(f"--{_flag(min(other))}: not with a script, which has its own settings")


def _predict_script(
    context: typer.Context, card: str, command: list[str], script: ScriptOptions, as_json: bool
) -> None:
    from experiments.prediction.script.trace import trace_script
    from experiments.prediction.script.view import as_data, view
    from experiments.suites.cards import cards_named

    _reject_options_of_models(context)
    with progress() as show, _exit_code_of_script():
        found = trace_script(command, cards_named(card or "all"), show, script)
    if as_json:
        print_json(as_data(found))
    else:
        console().print(view(found))
    if script.page:
        from experiments.report.pages.script import write_page

        write_page(script.page, command, found)
        say(f"page: {script.page}", stderr=True)
    needed = max(answer.needed_gib for one in found for answer in one.cards)
    if script.max_gib is not None and needed > script.max_gib:
        say(f"testbed: {needed:.2f} GiB are needed, more than --max-gib {script.max_gib:g}", stderr=True)
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
    from experiments.suites.cards import cards_named
    from experiments.suites.suite import own_suites

    if "model" not in (given := _given(context)):
        if own := given - {"card"}:
            raise InputError(f"--{min(own).replace('_', '-')}: needs --model; a row has its own settings")
        chosen = cards_named(card) if card not in ("", "all") else [None]
        asked = own_suites() if rows is None and context.params["suite_file"] else [rows]
        return [spec for target in asked for one in chosen for spec in rows_asked(target, one)]
    batches = _batches(batch)
    return [replace(training, card=name, batch=size).spec for name in cards_named(card) for size in batches]


def _batches(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        raise InputError(f"--batch {text}: allowed: whole numbers from 1, such as 4 or 1,2,4") from None
