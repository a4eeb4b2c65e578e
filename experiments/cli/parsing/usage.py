"""Usage errors in one line, in place of Typer's texts: the command, the wrong word and the allowed values."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.exceptions import TyperException

from experiments.cli.parsing.values import describe_allowed_values, displayed_name
from experiments.errors import InputError, similar_names

EXTRA_ARGUMENTS = re.compile(r"Got unexpected extra argument\(s\) \((.*)\)", re.DOTALL)
"""Typer's message about words after a command's last argument."""


@contextmanager
def usage_errors_as_input_errors(context: Any) -> Iterator[None]:
    """Replace Typer's usage errors in the body of the with statement by InputError. context: Typer's context."""
    try:
        yield
    except TyperException as problem:
        raise InputError(f"{_usage_message(problem, context)}; see {context.command_path} --help") from None


def _usage_message(problem: Any, context: Any) -> str:
    if param := getattr(problem, "param", None):
        return f"{displayed_name(param)} is required"
    if option := getattr(problem, "option_name", None):
        return _wrong_option(
            option, {name: param for param in context.command.get_params(context) for name in param.opts}
        )
    if extra := EXTRA_ARGUMENTS.fullmatch(problem.message):
        return f"unexpected argument {extra[1]}"
    text = " ".join(problem.format_message().split()).removesuffix(".")
    return text[:1].lower() + text[1:]


def _wrong_option(option: str, params: dict[str, Any]) -> str:
    if option not in params:
        similar = similar_names(option, params)
        return f"unknown option {option}" + (f"; did you mean {similar}?" if similar else "")
    if params[option].is_flag:
        return f"{option} takes no value"
    allowed = describe_allowed_values(params[option])
    return f"{option} needs a value" + (f"; allowed: {allowed}" if allowed else "")
