"""The help of a command: its usage line, what each argument and option means, and examples."""

from pathlib import Path
from typing import Any

from experiments.cli.parsing.values import choices_of, kind_of, name_of

WIDEST_CHOICES = 50
METAVARS = {int: "N", float: "NUMBER", Path: "PATH"}


def usage_pieces(command: Any) -> list[str]:
    """Return the words of the usage line: optional ones in brackets."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    return [command.options_metavar, *map(_usage, arguments)]


def records(command: Any, context: Any, kind: str) -> list[tuple[str, str]]:
    """Return name and meaning of each parameter; kind: argument or option."""
    params = [param for param in command.get_params(context) if param.param_type_name == kind]
    for param in params:
        if kind == "option" and param.metavar is None:
            _describe(param)
    shown = [(param, param.get_help_record(context)) for param in params]
    return [
        (record[0] if kind == "option" else name_of(param), record[1].replace("x>=", "from "))
        for param, record in shown
        if record
    ]


def _describe(param: Any) -> None:
    """Give an option its metavar: its values; if they are long, they stand in its help."""
    choices = choices_of(param)
    param.metavar = "|".join(choices) or METAVARS.get(kind_of(param), "TEXT")
    if len(param.metavar) > WIDEST_CHOICES:
        param.metavar = "NAME"
        param.help = f"{param.help} Allowed: {', '.join(choices)}."


def _usage(param: Any) -> str:
    name = name_of(param)
    several = param.nargs == -1 and "|" not in name
    if param.required:
        return f"{name} [{name} ...]" if several else name
    return f"[{name} ...]" if several else f"[{name}]"
