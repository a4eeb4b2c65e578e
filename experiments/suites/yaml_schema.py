"""Validate the YAML files of labs and catalog, with errors that state file, value and allowed values."""

import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.errors import InputError, similar_names
from experiments.suites.document import read_document

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T", bound=BaseModel)
LABS = Path(__file__).parent / "labs"
CATALOG = Path(__file__).parent / "catalog"
QUOTED_NAME = re.compile("'([^']*)'")


class StrictModel(BaseModel):
    """Base class of all data read from YAML: immutable, rejects unknown keys, builds its validator at first use."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@cache
def read_yaml(path: Path) -> Any:
    """Return the YAML document in ``path``. Raises InputError if it is missing, too large or not YAML."""
    return read_document(path).data


def validate(model: type[T], data: Any, where: str) -> T:
    """Return ``data`` as an instance of ``model``. Raises InputError with ``where`` and the first problem."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error, model)}") from None


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first problem of a pydantic error in one line, unknown keys first: key, value, allowed values."""
    return validation_problems(error, model)[0].text


class Problem(NamedTuple):
    """One problem of a value. place: keys from the top. similar_name: a similar allowed name, or ""."""

    place: tuple[int | str, ...]
    text: str
    similar_name: str = ""


def validation_problems(error: ValidationError, model: type[BaseModel], lists: Collection[str] = ()) -> list[Problem]:
    """Return all problems of a pydantic error, unknown keys first.

    lists: keys of lists whose entries the caller's message identifies. A problem of such an entry is described only by
    the key within the entry.
    """
    found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    found = [problem for problem in found if not _is_follow_up(problem, found)]
    named = [len(problem["loc"]) > 1 and problem["loc"][0] in lists for problem in found]
    return [_to_problem(problem, model, 2 if inside else 0) for problem, inside in zip(found, named, strict=True)]


def _is_follow_up(problem: Any, others: Iterable[Any]) -> bool:
    """Return whether the problem is a list that is too short only because pydantic left out its invalid entries."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        other["loc"][: len(place)] == place and other is not problem for other in others
    )


def _to_problem(problem: Any, model: type[BaseModel], skipped_keys: int) -> Problem:
    place = problem["loc"]
    key = ".".join(str(part) for part in place[skipped_keys:])
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_model_at(model, place[:-1]).model_fields)
        text = f"unknown key {key!r}; allowed: {', '.join(allowed)}"
        return Problem(place, text, similar_names(str(place[-1]), allowed))
    if problem["type"] == "missing":
        return Problem(place, f"key {key!r} is missing")
    message = error_message(problem)
    similar_name = (
        similar_names(str(problem["input"]), QUOTED_NAME.findall(message)) if problem["type"] == "literal_error" else ""
    )
    return Problem(place, f"{key} = {problem['input']!r}: {message}" if key else message, similar_name)


def error_message(problem: "ErrorDetails") -> str:
    """Return the message of a pydantic error in the style of this program's own errors."""
    message = problem["msg"].removeprefix("Value error, ")
    return re.sub(r"^Input should be (.*?)(, unable to .*)?$", r"allowed: \1", message)


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model class at ``path`` inside ``model``, or the nearest one that encloses the value at ``path``."""
    for part in path:
        field = model.model_fields.get(str(part))
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())) if field else ():
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model
