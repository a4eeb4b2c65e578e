"""Values of options and arguments, read from text; errors name the option, the value and what is allowed."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from experiments.errors import InputError, similar_names


class PlainValue:
    """Reads a parameter's value, as typer._coercion.RuntimeParam does."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002 - a method of RuntimeParam
        """Return the value with the parameter's type. Raises InputError."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        return tuple(_read(one, param) for one in value) if several else _read(value, param)


def name_of(param: Any) -> str:
    """Return what a user types for a parameter: the longest name of an option, or the word of an argument."""
    return max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or param.name.upper()


def allowed_by(param: Any) -> str:
    """Return the values that a parameter allows, in words."""
    if choices := choices_of(param):
        return ", ".join(choices)
    allowed = {int: "whole numbers", float: "numbers", Path: "a path"}.get(kind_of(param), "")
    return allowed if param.min is None else f"{allowed} from {param.min:g}"


def choices_of(param: Any) -> tuple[str, ...]:
    """Return the values of a parameter that has a fixed list of them, else nothing."""
    return get_args(kind_of(param))


def kind_of(param: Any) -> Any:
    """Return the type of one value of a parameter."""
    kind = param.type_descriptor.annotation
    return get_args(kind)[0] if param.type_descriptor.is_list else kind


def _read(value: Any, param: Any) -> Any:
    read: Callable[[str], Any] = READERS.get(kind_of(param), str)
    try:
        found = read(value) if isinstance(value, str) else value
    except ValueError:
        raise _wrong(value, param) from None
    choices = choices_of(param)
    if choices and found not in choices:
        raise _wrong(value, param, similar_names(value, choices))
    if param.min is not None and found < param.min:
        raise _wrong(value, param)
    return found


def _wrong(value: Any, param: Any, near: str = "") -> InputError:
    meant = f"; did you mean {near}?" if near else ""
    given = value or "''"
    return InputError(f"{name_of(param)} {given}: allowed: {allowed_by(param)}{meant}")


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError
    return number


def _path(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


READERS: dict[Any, Callable[[str], Any]] = {int: int, float: _number, Path: _path}
