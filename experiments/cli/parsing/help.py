"""The help of a command: its usage line, and the meaning of each argument and option."""

from pathlib import Path
from typing import Any

from experiments.cli.parsing.values import allowed_choices, displayed_name, value_type

MAX_CHOICES_WIDTH = 50
METAVARS = {int: "N", float: "NUMBER", Path: "PATH"}


def usage_pieces(command: Any) -> list[str]:
    """Return the words of the usage line, with optional words in brackets."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    return [command.options_metavar, *map(_usage_piece, arguments)]


def help_records(command: Any, context: Any, kind: str) -> list[tuple[str, str]]:
    """Return name and meaning of each parameter; kind: argument or option."""
    params = [param for param in command.get_params(context) if param.param_type_name == kind]
    for param in params:
        if kind == "option" and param.metavar is None:
            _set_metavar(param)
    shown = [(param, param.get_help_record(context)) for param in params]
    return [
        # Typer writes a minimum as [x>=1]; the help shows [from 1]
        (record[0] if kind == "option" else displayed_name(param), record[1].replace("x>=", "from "))
        for param, record in shown
        if record
    ]


def _set_metavar(param: Any) -> None:
    """Set an option's metavar to its allowed values. If they are too long, list the values in the help instead."""
    choices = allowed_choices(param)
    param.metavar = "|".join(choices) or METAVARS.get(value_type(param), "TEXT")
    if len(param.metavar) > MAX_CHOICES_WIDTH:
        param.metavar = "NAME"
        param.help = f"{param.help} Allowed: {', '.join(choices)}."


def _usage_piece(param: Any) -> str:
    name = displayed_name(param)
    is_repeatable = param.nargs == -1 and "|" not in name
    if param.required:
        return f"{name} [{name} ...]" if is_repeatable else name
    return f"[{name} ...]" if is_repeatable else f"[{name}]"
