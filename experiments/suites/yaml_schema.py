"""Read the YAML files of labs and catalog into checked data, with errors that state file, value and fix."""

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.errors import InputError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T", bound=BaseModel)
LABS = Path(__file__).parent / "labs"
CATALOG = Path(__file__).parent / "catalog"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""LibYAML's loader where PyYAML was built with it: seven times as fast."""


class StrictModel(BaseModel):
    """Base of everything read from YAML: frozen, unknown keys are rejected, built when it is first used."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@cache
def read_yaml(path: Path) -> Any:
    """Return the YAML document in ``path``. Raises InputError if it is missing or not YAML."""
    try:
        return _parse(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, Loader=LOADER)
    except yaml.YAMLError:
        return yaml.safe_load(text)  # raises the same error with the line that it begins in


def checked(model: type[T], data: Any, where: str) -> T:
    """Return ``data`` as ``model``. Raises InputError: ``where`` and the first problem, in one line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {plain(error, model)}") from None


def plain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return an unknown key, else the first problem of a pydantic error, in one line: key, value, allowed values."""
    problems = error.errors()
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner = _owner(model, problem["loc"][:-1])
        return f"unknown key {key!r}; allowed: {', '.join(sorted(owner.model_fields))}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    return f"{key} = {problem['input']!r}: {in_words(problem)}" if key else in_words(problem)


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
