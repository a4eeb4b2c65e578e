"""`testbed fit`: the largest batch that fits a card, and changes that save memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli.output import console, print_json, progress
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, OmitFields, SuiteFile, expand_options
from experiments.cli.parsing.trainings import (
    SCRIPT_COMMAND,
    BatchList,
    CardList,
    FailedBatches,
    RowsOrCommand,
    Training,
    command_after_dashes,
    describes_model,
    exit_if_script_fails,
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
    from experiments.prediction.loop_fit import Attempt
    from experiments.prediction.script.fit import ScriptFit

app = Commands()
BatchFlag = Annotated[
    str | None,
    typer.Option(metavar="FLAG", help="For a script: its own option for the batch size, such as --batch-size."),
]


@app.command()
@expand_options
def fit(
    context: typer.Context,
    training: Training,
    script: Annotated[ScriptOptions, OmitFields("max_gib", "page")],
    rows: RowsOrCommand = None,
    card: CardList = "",
    batch: BatchList = "1",
    batch_flag: BatchFlag = None,
    suite_file: SuiteFile = None,  # noqa: ARG001 - specs_to_predict reads it from the context
    as_json: Json = False,
) -> None:
    """Find the largest batch that fits, and changes that save memory.

    For a training script: testbed fit --card a100_80gb --batch-flag --batch -- python train.py
    """
    interrupt_on_stop_signals()
    if command := command_after_dashes(context):
        _fit_script(context, card, command, batch_flag, script, as_json)
        return
    reject_options_of_scripts(context)
    row = optional_word(rows, "fit", "SUITE/ROW")
    if describes_model(context, row, training):
        _fit_model(training, card, parse_batches(batch), as_json)
    else:
        _fit_rows(context, row, card, as_json)


def _fit_model(training: CustomTraining, card: str, batches: list[int], as_json: bool) -> None:
    from experiments.prediction.loop import describe_training, samples_of_step, training_as_data
    from experiments.prediction.loop_fit import (
        ProgramTraces,
        attempts_as_data,
        attempts_table,
        describe_fastest_change,
        fit_program,
        try_changes,
    )
    from experiments.prediction.script.fit import fit_as_data, fit_view, largest_batches_view
    from experiments.suites.cards import parse_card_list

    names, data, failed = parse_card_list(card), list[dict[str, Any]](), FailedBatches(len(batches))

    def show_fits(
        variant: CustomTraining, fits: "Sequence[ScriptFit]", attempts: "Sequence[Sequence[Attempt]]"
    ) -> None:
        """Print the fits of one batch size, one for each card, and add them to ``data``.

        attempts: for each fit, the changes that were tried to save memory.
        """
        sample, batches_per_step = fits[0].sample, samples_of_step(replace(variant, batch=1))
        for one, changes in zip(fits, attempts, strict=True):
            found = {**fit_as_data(one, batches_per_step), "changes": attempts_as_data(changes)}
            data.append({**training_as_data(variant, sample), **found})
        if as_json:
            return
        console().print(describe_training(variant, sample))
        if len(fits) > 1:
            console().print(largest_batches_view(fits, "--batch"))
        for one, changes in zip(fits, attempts, strict=True):
            lines = fit_view(one, "--batch", batches_per_step), *describe_fastest_change(changes)
            console().print(*lines, attempts_table(changes), sep="\n")

    try:
        for variant in (replace(training, card=names[0], batch=size) for size in batches):
            with failed.catch(variant.batch):
                fits, attempts = list["ScriptFit"](), list[list["Attempt"]]()
                try:
                    with progress() as show:
                        traces = ProgramTraces(names, show)
                        fits = fit_program(variant, traces)
                        attempts = [[] for _ in fits]
                        traces.raise_failure()
                        for one, changes in zip(fits, attempts, strict=True):
                            try_changes(variant, one, traces, changes)
                finally:
                    if fits:
                        show_fits(variant, fits, attempts)
    finally:
        if as_json and data:
            print_json(data[0] if len(batches) * len(names) == 1 else data)
    failed.exit_if_any()


def _fit_rows(context: typer.Context, rows: str | None, card: str, as_json: bool) -> None:
    from experiments.prediction.fit import fit_row
    from experiments.prediction.service import trace_rows
    from experiments.prediction.tables import fit_as_data, fit_view

    if "/" not in (rows or ""):
        raise InputError(f"fit: needs SUITE/ROW, --model, or {SCRIPT_COMMAND}")
    specs = specs_to_predict(context, rows, card)
    with progress() as show:
        fits = [fit_row(spec, lambda specs, failed: trace_rows(specs, show, failed)) for spec in specs]
    if as_json:
        print_json([*map(fit_as_data, fits)])
    else:
        console().print(*map(fit_view, fits), sep="\n")


def _fit_script(
    context: typer.Context, card: str, command: list[str], flag: str | None, script: ScriptOptions, as_json: bool
) -> None:
    from experiments.prediction.script.fit import (
        FIRST_BATCH,
        SharedTraces,
        fit_as_data,
        fit_view,
        largest_batches_view,
        read_batch,
        set_batch,
    )
    from experiments.prediction.script.trace import trace_script
    from experiments.suites.cards import MEMORY_SIZE_HELP, cards, parse_card_list

    reject_options_of_models(context)
    if not flag:
        raise InputError(
            "fit -- COMMAND: needs --batch-flag, the script's option for its batch size, as in --batch-flag --batch"
        )
    if not card:
        raise InputError(f"fit -- COMMAND: needs --card, one of {', '.join(cards())}, {MEMORY_SIZE_HELP}, or all")
    names, first = parse_card_list(card), read_batch(command, flag) or FIRST_BATCH
    with progress() as show, exit_if_script_fails():
        traces = SharedTraces[tuple[str, ...]](names, lambda words, group: trace_script(words, group, show, script))
        fits = traces.fit_batches(first, lambda batch: tuple(set_batch(command, flag, batch)))
    if as_json:
        data = [fit_as_data(one) for one in fits]
        print_json(data[0] if len(names) == 1 else data)
    else:
        console().print(fit_view(fits[0], flag) if len(fits) == 1 else largest_batches_view(fits, flag))
    with exit_if_script_fails():
        traces.raise_failure()
