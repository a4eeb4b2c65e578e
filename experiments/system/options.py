"""Options declared once, as fields of a dataclass; experiments/cli/parsing/options.py offers them to commands."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

KEY = "option"


@dataclass(frozen=True)
class Option:
    """The command-line option of a field.

    flag: the option's name if it differs from the field's name. minimum: smallest allowed number.
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    minimum: float | None = None

    def name_of(self, field: str) -> str:
        """Return the option's name without leading dashes and with underscores, as in the Makefile."""
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
    """Return a dataclass field with an option; ``metadata`` is added to the field's own."""
    declared = Option(help, flag, metavar, minimum)
    return field(default=default, metadata={KEY: declared, **(metadata or {})})


def options_of(cls: type) -> Iterator[tuple[Field[Any], Option]]:
    """Yield the fields of a dataclass that have an option, in their order."""
    for one in fields(cls):
        if declared := one.metadata.get(KEY):
            assert one.default is not MISSING, f"{cls.__name__}.{one.name} needs a default"
            yield one, declared
