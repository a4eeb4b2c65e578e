"""Parse the values of options and arguments. Errors name the option, the value and the allowed values."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, get_args

from experiments.errors import InputError, similar_names
from provision.errors import BadTime

Parsed = TypeVar("Parsed")


class ValueParser:
    """Reads a parameter's value, in place of typer._coercion.RuntimeParam, which would import pydantic."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002 - a method of RuntimeParam
        """Return the value with the parameter's type. Raises InputError."""
        is_list = param.multiple or param.nargs == -1
        if value is None:
            return () if is_list else None
        return tuple(_parse_value(one, param) for one in value) if is_list else _parse_value(value, param)


def displayed_name(param: Any) -> str:
    """Return a parameter's name in help and errors: an option's longest flag, or an argument's metavar."""
    return max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or param.name.upper()


def parse_time_option(option: str, parse: Callable[[str], Parsed], text: str) -> Parsed:
    """Return an option's parsed value: a length, time, daily window or zone. Raises BadTime with the option's name."""
    try:
        return parse(text)
    except BadTime as problem:
        raise BadTime(f"{option}: {problem}") from None


def describe_allowed_values(param: Any) -> str:
    """Return a description of the values that a parameter allows."""
    if choices := allowed_choices(param):
        return ", ".join(choices)
    allowed = {int: "whole numbers", float: "numbers", Path: "a path"}.get(value_type(param), "")
    return allowed if param.min is None else f"{allowed} from {param.min:g}"


def allowed_choices(param: Any) -> tuple[str, ...]:
    """Return the values of a parameter that allows only a fixed list of values; empty for any other parameter."""
    return get_args(value_type(param))


def value_type(param: Any) -> Any:
    """Return the type of one value of a parameter."""
    kind = param.type_descriptor.annotation
    return get_args(kind)[0] if param.type_descriptor.is_list else kind


def _parse_value(value: Any, param: Any) -> Any:
    read: Callable[[str], Any] = PARSERS.get(value_type(param), str)
    try:
        parsed = read(value) if isinstance(value, str) else value
    except ValueError:
        raise _invalid_value(value, param) from None
    choices = allowed_choices(param)
    if choices and parsed not in choices:
        raise _invalid_value(value, param, similar_names(value, choices))
    if param.min is not None and parsed < param.min:
        raise _invalid_value(value, param)
    return parsed


def _invalid_value(value: Any, param: Any, similar: str = "") -> InputError:
    suggestion = f"; did you mean {similar}?" if similar else ""
    shown = value or "''"
    return InputError(f"{displayed_name(param)} {shown}: allowed: {describe_allowed_values(param)}{suggestion}")


def _finite_number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError
    return number


def _nonempty_path(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


PARSERS: dict[Any, Callable[[str], Any]] = {int: int, float: _finite_number, Path: _nonempty_path}
