"""Arguments of `testbed predict` and `testbed fit`, and functions that interpret them."""

import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.output import say
from experiments.cli.parsing.options import OmitFields
from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.script.options import ScriptOptions
from experiments.system.options import fields_with_options

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
MAX_BATCH_DIGITS = 9
"""Maximum number of digits of a batch size."""
SCRIPT_COMMAND = "a script's command after --, as in -- python train.py"
RowsOrCommand = Annotated[
    list[str] | None,
    typer.Argument(metavar="SUITE[/ROW] | -- COMMAND", help="Rows of a suite, or a training script's command line."),
]
Training = Annotated[CustomTraining, OmitFields("card", "batch")]
CARDS_HELP = "GPU models, or memory sizes such as 24GiB; all: every GPU model"
CARDS_DEFAULT_HELP = "Default for rows: each row's GPU models."
CardList = Annotated[str, typer.Option(metavar="CARD,...", help=f"{CARDS_HELP}. {CARDS_DEFAULT_HELP}")]
CardsOrSmallest = Annotated[
    str,
    typer.Option(
        metavar="CARD,...",
        help=f"{CARDS_HELP}; smallest: show only the smallest card that fits, among the listed cards or, if none is "
        f"listed, among all (scripts and --model only). {CARDS_DEFAULT_HELP}",
    ),
]
BatchList = Annotated[
    str, typer.Option(metavar="N,...", help="Samples per GPU and micro-step; several values are compared.")
]


def describes_model(context: typer.Context, rows: str | None, training: CustomTraining) -> bool:
    """Return whether --model describes a training, which runs as a separate program, not as a row of a suite.

    Raises InputError for --model together with rows, or without --card.
    """
    options_set = option_fields_given(context)
    if "model" not in options_set:
        return False
    if rows is not None:
        raise InputError(f"--model {training.model}: not allowed with {rows!r}")
    if "card" not in options_set:
        from experiments.suites.cards import MEMORY_SIZE_HELP, cards

        raise InputError(
            f"--model {training.model}: needs --card, one of {', '.join(cards())}, {MEMORY_SIZE_HELP}, or all"
        )
    return True


@contextmanager
def exit_if_script_fails() -> Iterator[None]:
    """If the script fails or Ctrl-C is pressed in the body of the with statement, print a line, and exit."""
    from experiments.prediction.script.trace import ScriptFailed

    try:
        yield
    except (ScriptFailed, KeyboardInterrupt) as problem:
        raise typer.Exit(report_failure(problem)) from None


def report_failure(problem: BaseException, what: str = "", reason: str = "") -> int:
    """Print why a prediction failed; return the exit code.

    what: what was predicted, such as 'batch 4'. reason: printed in place of the problem's own text.
    """
    from experiments.prediction.script.trace import ScriptFailed

    interrupted = isinstance(problem, KeyboardInterrupt)
    if interrupted:
        reason = "interrupted; predictions that were not shown are lost"
    say(f"testbed: {what}{': ' if what else ''}{reason or problem}", stderr=True)
    if isinstance(problem, ScriptFailed):
        return problem.code if problem.code > 0 else 128 - problem.code
    return EXIT_INTERRUPTED if interrupted else EXIT_BAD_INPUT


class FailedBatches:
    """The batch sizes whose prediction failed.

    After the failure of a batch size, the command goes on with the next one; after Ctrl-C, it ends. count: the number
    of batch sizes.
    """

    def __init__(self, count: int) -> None:
        self._count, self._code = count, 0
        self._first_batch_by_reason: dict[str, int] = {}

    @contextmanager
    def catch(self, batch: int) -> Iterator[None]:
        """Print a failure in the body of the with statement. Exit after Ctrl-C.

        The reason of a failure is printed once: further batch sizes that fail for it name the first one.
        """
        from experiments.prediction.script.trace import ScriptFailed

        try:
            yield
        except (InputError, ScriptFailed, KeyboardInterrupt) as problem:
            if isinstance(problem, InputError) and self._count == 1:
                raise
            first = self._first_batch_by_reason.setdefault(str(problem), batch)
            code = report_failure(
                problem,
                f"batch {batch}" if self._count > 1 else "",
                "" if first == batch else f"fails as batch {first} does",
            )
            self._code = self._code or code
            if isinstance(problem, KeyboardInterrupt):
                raise typer.Exit(code) from None

    def exit_if_any(self) -> None:
        """Exit with the code of the first failure."""
        if self._code:
            raise typer.Exit(self._code)


def reject_options_of_scripts(context: typer.Context, allowed: Collection[str] = ()) -> None:
    """Raise InputError if an option is set that needs a script's command, other than the fields in ``allowed``."""
    if options_set := option_fields_given(context, ScriptOptions) - {*allowed}:
        raise InputError(f"--{_flag_name(min(options_set))}: needs {SCRIPT_COMMAND}")


def reject_options_of_models(context: typer.Context) -> None:
    """Raise InputError if an option of a custom training other than --card is set."""
    if other := option_fields_given(context, CustomTraining) - {"card"}:
        raise InputError(f"--{_flag_name(min(other))}: not allowed with a script, which has its own settings")


def command_after_dashes(context: typer.Context) -> list[str]:
    """Return the words after `--` in the command line, which context.obj stores; empty without `--`.

    Raises InputError if `--` is the last word.
    """
    words = shlex.split(context.obj)
    if "--" not in words:
        return []
    command = words[words.index("--") + 1 :]
    if not command:
        raise InputError("the command after -- is missing, as in -- python train.py")
    return command


def optional_word(words: list[str] | None, command: str, allowed: str) -> str | None:
    """Return the only word in ``words``, or None if there is no word. Raises InputError if there are several.

    command, allowed: for the error's message: the name of the command, and the kind of word that it allows.
    """
    if len(words or ()) > 1:
        raise InputError(f"{command} {' '.join(words or ())}: allowed: one {allowed}; write {SCRIPT_COMMAND}")
    return words[0] if words else None


def _flag_name(field_name: str) -> str:
    """Return the option of a field as users type it, but without the leading dashes, such as 'max-gib'."""
    declared = {
        field.name: option for cls in (CustomTraining, ScriptOptions) for field, option in fields_with_options(cls)
    }
    return declared[field_name].name_of(field_name).replace("_", "-")


def option_fields_given(context: typer.Context, cls: type = CustomTraining) -> set[str]:
    """Return the names of the fields of ``cls`` whose options are set on the command line."""
    sources = {field.name: context.get_parameter_source(field.name) for field, _ in fields_with_options(cls)}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def specs_to_predict(context: typer.Context, rows: str | None, card: str) -> "list[RowSpec]":
    """Return the rows to predict. Raises InputError for options of a model, and for unknown rows and cards."""
    from experiments.prediction.service import select_rows
    from experiments.suites.cards import EVERY_CARD, parse_card_list
    from experiments.suites.suite import user_suites

    if other := option_fields_given(context) - {"card"}:
        raise InputError(f"--{min(other).replace('_', '-')}: needs --model; a row has its own settings")
    chosen = parse_card_list(card) if card not in ("", EVERY_CARD) else [None]
    targets = user_suites() if rows is None and context.params["suite_file"] else [rows]
    return [spec for target in targets for one in chosen for spec in select_rows(target, one)]


def parse_batches(text: str) -> list[int]:
    """Return the batch sizes of --batch, each once. Raises InputError for anything but whole numbers from 1."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) <= MAX_BATCH_DIGITS and int(word) for word in words):
        raise InputError(
            f"--batch {text:.40}: allowed: whole numbers from 1 to {10**MAX_BATCH_DIGITS - 1}, such as 4 or 1,2,4"
        )
    return list(dict.fromkeys(map(int, words)))
