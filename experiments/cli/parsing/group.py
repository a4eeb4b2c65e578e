"""The group of all commands, which imports only the module of the chosen one, and the class of each command."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from experiments.cli.parsing.commands import COMMANDS, load
from experiments.cli.parsing.examples import examples
from experiments.cli.parsing.help import records, usage_pieces
from experiments.cli.parsing.usage import in_own_words
from experiments.cli.parsing.values import PlainValue
from experiments.errors import unknown_name

WIDEST = max(map(len, COMMANDS))


class Command(TyperCommand):
    """A command whose values are read by PlainValue and whose errors are InputErrors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments into the context; return the rest."""
        read_plainly(self.get_params(ctx))
        with in_own_words(ctx):
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

    def command(self, name: str | None = None, **more: Any) -> Callable[[Any], Any]:
        """Return the decorator of a command."""
        return super().command(name, cls=Command, **more)


class Group(TyperGroup):
    """All commands: their names and help come from the table, a command itself from its module once it is chosen."""

    def __init__(self, **attributes: Any) -> None:
        listed = {name: Command(name, short_help=entry.help) for name, entry in COMMANDS.items()}
        super().__init__(**{**attributes, "commands": listed})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments before the command's name into the context; return the rest."""
        read_plainly(self.get_params(ctx))
        with in_own_words(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with in_own_words(ctx):
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and further arguments. Raises InputError for an unknown command."""
        name, *rest = args
        if name in COMMANDS:
            return name, load(name), rest
        if ctx.resilient_parsing:
            return None, None, rest
        raise unknown_name("command", name, COMMANDS)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        write_records(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - a method of TyperGroup
        """Write the commands in sections, with their whole help."""
        for section, entries in groupby(COMMANDS.items(), key=lambda item: item[1].section):
            with formatter.section(section):
                formatter.write_dl([(f"{name:{WIDEST}}", entry.help) for name, entry in entries])


def write_records(command: Any, context: Any, formatter: Any) -> None:
    """Write a section for the arguments of a command, and one for its options."""
    for kind in ("argument", "option"):
        if found := records(command, context, kind):
            with formatter.section(f"{kind.title()}s"):
                formatter.write_dl(found)


def read_plainly(params: Sequence[Any]) -> None:
    """Let Typer read the values of ``params`` by PlainValue: pydantic, its own way, takes long to import."""
    for param in params:
        param._runtime_param = PlainValue()
