"""Examples of each command, from examples.toml."""

from functools import cache
from pathlib import Path

FILE = Path(__file__).with_suffix(".toml")


@cache
def examples() -> dict[str, list[str]]:
    """Return two or more command lines for each command."""
    import tomllib

    return tomllib.loads(FILE.read_text())
