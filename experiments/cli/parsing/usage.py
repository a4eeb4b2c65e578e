"""Errors of usage in one line: the command, the wrong word and what is allowed, in place of Typer's own texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.exceptions import TyperException

from experiments.cli.parsing.values import allowed_by, name_of
from experiments.errors import InputError, similar_names


@contextmanager
def in_own_words(context: Any) -> Iterator[None]:
    """Raise InputError for Typer's errors of usage in the body; context: that of the command."""
    try:
        yield
    except TyperException as problem:
        raise InputError(f"{_in_words(problem, context)}; see {context.command_path} --help") from None


def _in_words(problem: Any, context: Any) -> str:
    if param := getattr(problem, "param", None):
        return f"{name_of(param)} is required"
    if option := getattr(problem, "option_name", None):
        return _wrong_option(
            option, {name: param for param in context.command.get_params(context) for name in param.opts}
        )
    text = " ".join(problem.format_message().split()).removesuffix(".")
    return text[:1].lower() + text[1:]


def _wrong_option(option: str, params: dict[str, Any]) -> str:
    if option not in params:
        near = similar_names(option, params)
        return f"unknown option {option}" + (f"; did you mean {near}?" if near else "")
    if params[option].is_flag:
        return f"{option} takes no value"
    allowed = allowed_by(params[option])
    return f"{option} needs a value" + (f"; allowed: {allowed}" if allowed else "")
