"""`testbed predict`: predict GPU memory and step time of rows, models and scripts, without a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from experiments.cli.output import console, print_json, progress, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, SuiteFile, expand_options
from experiments.cli.parsing.trainings import (
    BatchList,
    CardsOrSmallest,
    FailedBatches,
    RowsOrCommand,
    Training,
    command_after_dashes,
    describes_model,
    exit_if_script_fails,
    option_fields_given,
    optional_word,
    parse_batches,
    reject_options_of_models,
    reject_options_of_scripts,
    specs_to_predict,
)
from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.script.options import ScriptOptions
from experiments.system.signals import interrupt_on_stop_signals

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

app = Commands()


@app.command()
@expand_options
def predict(
    context: typer.Context,
    training: Training,
    script: ScriptOptions,
    words: RowsOrCommand = None,
    card: CardsOrSmallest = "",
    batch: BatchList = "1",
    suite_file: SuiteFile = None,  # noqa: ARG001 - specs_to_predict reads it from the context
    as_json: Json = False,
) -> None:
    """Predict memory and time of rows, models or scripts without a GPU.

    A script's command comes after `--`: testbed predict --card all -- python train.py. The script runs unchanged on a
    simulated GPU, and is ended after the optimizer steps of --steps.
    """
    interrupt_on_stop_signals()
    if command := command_after_dashes(context):
        _predict_script(context, card, command, script, as_json)
        return
    reject_options_of_scripts(context, [] if "model" in option_fields_given(context) else ["all_ranks"])
    rows = optional_word(words, "predict", "SUITE[/ROW]")
    if describes_model(context, rows, training):
        _predict_model(training, card, parse_batches(batch), as_json)
    else:
        _predict_rows(specs_to_predict(context, rows, card), script.all_ranks, as_json)


def _predict_rows(specs: "Sequence[RowSpec]", all_ranks: bool, as_json: bool) -> None:
    from experiments.prediction.service import trace_all_ranks, trace_rows
    from experiments.prediction.tables import prediction_as_data, prediction_tables

    failures: list[Exception] = []
    with progress() as show:
        trace = trace_all_ranks if all_ranks else trace_rows
        predictions = trace(specs, show, lambda spec, problem: failures.append(problem))
    if as_json:
        print_json([*map(prediction_as_data, predictions)])
    elif predictions:
        console().print(prediction_tables(predictions))
    for problem in failures:
        say(str(problem), stderr=True)
    if failures:
        raise typer.Exit(2 if any(isinstance(problem, InputError) for problem in failures) else 3)


def _predict_model(training: CustomTraining, card: str, batches: list[int], as_json: bool) -> None:
    from experiments.prediction.loop import (
        describe_training,
        program_command,
        samples_of_step,
        trace_options,
        training_as_data,
    )
    from experiments.prediction.script.trace import trace_script
    from experiments.prediction.script.view import script_predictions_as_data, script_predictions_view
    from experiments.suites.cards import parse_cards_or_smallest

    (names, smallest), failed = parse_cards_or_smallest(card), FailedBatches(len(batches))
    data: list[dict[str, object]] = []
    try:
        for variant in (replace(training, card=names[0], batch=size) for size in batches):
            with failed.catch(variant.batch):
                words, options = program_command(variant), trace_options(variant)
                label = f"{variant.model}, batch {variant.batch}"
                with progress() as show:
                    predictions = trace_script(words, names, show, options, label, smallest)
                samples, sample = samples_of_step(variant), predictions[0].sample
                data.append({**training_as_data(variant, sample), **script_predictions_as_data(predictions, samples)})
                if not as_json:
                    view = script_predictions_view(predictions, variant.precision, samples)
                    console().print(describe_training(variant, sample), view, sep="\n")
    finally:
        if as_json and data:
            print_json(data[0] if len(batches) == 1 else data)
    failed.exit_if_any()


def _predict_script(
    context: typer.Context, card: str, command: list[str], script: ScriptOptions, as_json: bool
) -> None:
    from experiments.prediction.script.trace import trace_script
    from experiments.prediction.script.view import script_predictions_as_data, script_predictions_view
    from experiments.suites.cards import parse_cards_or_smallest

    reject_options_of_models(context)
    names, smallest = parse_cards_or_smallest(card)
    with progress() as show, exit_if_script_fails():
        predictions = trace_script(command, names, show, script, only_smallest_card=smallest)
    if as_json:
        print_json(script_predictions_as_data(predictions))
    else:
        console().print(script_predictions_view(predictions))
    if script.page:
        from experiments.report.pages.script import write_script_page

        write_script_page(script.page, command, predictions)
        say(f"page: {script.page}", stderr=True)
    needed = max(card.needed_gib for one in predictions for card in one.cards)
    if script.max_gib is not None and needed > script.max_gib:
        say(f"testbed: {needed:.2f} GiB are needed, more than --max-gib {script.max_gib:g}", stderr=True)
        raise typer.Exit(1)
