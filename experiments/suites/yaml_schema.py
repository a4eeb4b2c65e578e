"""Read the YAML files of labs and catalog into checked data, with errors that state file, value and fix."""

import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.errors import InputError, nearest
from experiments.suites.document import read_document

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T", bound=BaseModel)
LABS = Path(__file__).parent / "labs"
CATALOG = Path(__file__).parent / "catalog"
QUOTED = re.compile("'([^']*)'")


class StrictModel(BaseModel):
    """Base of everything read from YAML: frozen, unknown keys are rejected, built when it is first used."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@cache
def read_yaml(path: Path) -> Any:
    """Return the YAML document in ``path``. Raises InputError if it is missing, too large or not YAML."""
    return read_document(path).data


def checked(model: type[T], data: Any, where: str) -> T:
    """Return ``data`` as ``model``. Raises InputError: ``where`` and the first problem, in one line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {plain(error, model)}") from None


def plain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return an unknown key, else the first problem of a pydantic error, in one line: key, value, allowed values."""
    return problems(error, model)[0].text


class Problem(NamedTuple):
    """One problem of a value. place: keys from the top. near: an allowed name that is like the wrong one, or ""."""

    place: tuple[int | str, ...]
    text: str
    near: str = ""


def problems(error: ValidationError, model: type[BaseModel], lists: Collection[str] = ()) -> list[Problem]:
    """Return all problems of a pydantic error, unknown keys first.

    ``lists``: keys of lists whose entries the caller names, so that a text begins inside of the entry.
    """
    found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    found = [problem for problem in found if not _follows(problem, found)]
    named = [len(problem["loc"]) > 1 and problem["loc"][0] in lists for problem in found]
    return [_problem(problem, model, 2 if inside else 0) for problem, inside in zip(found, named, strict=True)]


def _follows(problem: Any, others: Iterable[Any]) -> bool:
    """Return whether a list is too short only because its entries are wrong."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        other["loc"][: len(place)] == place and other is not problem for other in others
    )


def _problem(problem: Any, model: type[BaseModel], skip: int) -> Problem:
    place = problem["loc"]
    key = ".".join(str(part) for part in place[skip:])
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_owner(model, place[:-1]).model_fields)
        text = f"unknown key {key!r}; allowed: {', '.join(allowed)}"
        return Problem(place, text, nearest(str(place[-1]), allowed))
    if problem["type"] == "missing":
        return Problem(place, f"key {key!r} is missing")
    message = in_words(problem)
    near = nearest(str(problem["input"]), QUOTED.findall(message)) if problem["type"] == "literal_error" else ""
    return Problem(place, f"{key} = {problem['input']!r}: {message}" if key else message, near)


def in_words(problem: "ErrorDetails") -> str:
    """Return what a pydantic error says, in the words of this program's own errors."""
    message = problem["msg"].removeprefix("Value error, ")
    return re.sub(r"^Input should be (.*?)(, unable to .*)?$", r"allowed: \1", message)


def _owner(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model class of a location inside ``model``, as far as it can be followed."""
    for part in path:
        field = model.model_fields.get(str(part))
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())) if field else ():
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model
