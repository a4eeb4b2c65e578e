"""Declare command-line options as fields of a dataclass; experiments/cli/parsing/options.py adds them to commands."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

OPTION_KEY = "option"


@dataclass(frozen=True)
class Option:
    """The command-line option of a field.

    flag: the name of the option if it differs from the name of the field. metavar: placeholder of the value in the help
    text. minimum: the smallest allowed number.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    minimum: float | None = None

    def name_of(self, field: str) -> str:
        """Return the name of the option as in the Makefile: without leading dashes, with underscores."""
        return (self.flag or field).lstrip("-").replace("-", "_")


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    minimum: float | None = None,
    metadata: dict[str, Any] | None = None,
) -> Any:
    """Return a dataclass field that declares an option; ``metadata`` is added to the metadata of the field.

    For the other parameters see Option.
    """
    declared = Option(help, flag, metavar, minimum)
    return field(default=default, metadata={OPTION_KEY: declared, **(metadata or {})})


def fields_with_options(cls: type) -> Iterator[tuple[Field[Any], Option]]:
    """Yield the fields of a dataclass that have an option, each with its option, in their order."""
    for one in fields(cls):
        if declared := one.metadata.get(OPTION_KEY):
            assert one.default is not MISSING, f"{cls.__name__}.{one.name} needs a default"
            yield one, declared
