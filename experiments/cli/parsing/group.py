"""The group of all commands, and the class of each command. Only the module of the chosen command is imported."""

from collections.abc import Callable, Sequence
from inspect import cleandoc
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from experiments.cli.parsing.commands import COMMANDS, load_command
from experiments.cli.parsing.examples import examples
from experiments.cli.parsing.help import help_records, usage_pieces
from experiments.cli.parsing.usage import usage_errors_as_input_errors
from experiments.cli.parsing.values import ValueParser
from experiments.errors import unknown_name_error

NAME_WIDTH = max(map(len, COMMANDS))
UNBROKEN_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class HelpWithUnbrokenHyphens:
    """Help whose lines are broken at spaces only, so that options and values with hyphens stay whole."""

    help: str | None

    def get_help(self, ctx: Any) -> str:
        """Return the text that --help prints."""
        text: str = super().get_help(ctx)  # type: ignore[misc]
        return text.replace(UNBROKEN_HYPHEN, "-")

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - a method of TyperCommand
        """Write the description of the command to ``formatter``."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(with_unbroken_hyphens(cleandoc(self.help or "")))


def with_unbroken_hyphens(text: str) -> str:
    """Return the text with non-breaking hyphens in place of hyphens."""
    return text.replace("-", UNBROKEN_HYPHEN)


class Command(HelpWithUnbrokenHyphens, TyperCommand):
    """A command that parses its values with ValueParser and raises InputError for usage errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments into the context; return the arguments that are left."""
        use_value_parser(self.get_params(ctx))
        with usage_errors_as_input_errors(ctx):
            return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - a method of TyperCommand
        """Return the words of the usage line."""
        return usage_pieces(self)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        write_records(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - a method of TyperCommand
        """Write the examples, each on its own line."""
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in examples()[str(self.name)]))


class Commands(typer.Typer):
    """The commands of one module."""

    def __init__(self) -> None:
        super().__init__(rich_markup_mode=None)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Return the decorator of a command."""
        return super().command(name, cls=Command, **options)


class Group(HelpWithUnbrokenHyphens, TyperGroup):
    """The group of all commands, with names and help from COMMANDS. Imports the module of the chosen command only."""

    def __init__(self, **attributes: Any) -> None:
        listed = {name: Command(name, short_help=entry.help) for name, entry in COMMANDS.items()}
        super().__init__(**{**attributes, "commands": listed})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command's name into the context; return the words that are left."""
        use_value_parser(self.get_params(ctx))
        with usage_errors_as_input_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with usage_errors_as_input_errors(ctx):
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and further arguments. Raises InputError for an unknown command."""
        name, *rest = args
        if name in COMMANDS:
            return name, load_command(name), rest
        if ctx.resilient_parsing:
            return None, None, rest
        raise unknown_name_error("command", name, COMMANDS)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        write_records(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - a method of TyperGroup
        """Write the commands in sections, each with the first line of its help in full length."""
        for section, entries in groupby(COMMANDS.items(), key=lambda item: item[1].section):
            with formatter.section(section):
                formatter.write_dl([(f"{name:{NAME_WIDTH}}", entry.help) for name, entry in entries])


def write_records(command: Any, context: Any, formatter: Any) -> None:
    """Write a section for the arguments of a command, and one for its options."""
    for kind in ("argument", "option"):
        if found := help_records(command, context, kind):
            with formatter.section(f"{kind.title()}s"):
                formatter.write_dl([(name, with_unbroken_hyphens(meaning)) for name, meaning in found])


def use_value_parser(params: Sequence[Any]) -> None:
    """Make Typer parse the values of ``params`` with ValueParser, because pydantic, Typer's default, imports slowly."""
    for param in params:
        param._runtime_param = ValueParser()
