"""The suites by name, both the package's and the user's."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from experiments.errors import InputError, unknown_name_error
from experiments.suites.choices import GroupOption
from experiments.suites.document import read_document
from experiments.suites.mistakes import suite_and_mistakes
from experiments.suites.schema import (
    Bounds,
    Check,
    Claim,
    Expectation,
    ExpectedOutcome,
    LeaseEstimate,
    Quantity,
    ReferenceValue,
    Row,
    Scale,
    Suite,
)
from experiments.suites.yaml_schema import LABS

__all__ = [
    "LABS",
    "SUITES_VARIABLE",
    "TEMPLATE_FILE",
    "Bounds",
    "Check",
    "Claim",
    "Expectation",
    "ExpectedOutcome",
    "LeaseEstimate",
    "Quantity",
    "ReferenceValue",
    "Row",
    "Scale",
    "Suite",
    "read_suite",
    "suite_named",
    "suite_names",
    "suites_in_group",
    "user_suite_file",
    "user_suites",
]

TEMPLATE_FILE = LABS.parent / "template.yaml"
"""Template of a suite's file."""
SUITES_VARIABLE = "TESTBED_SUITES"
"""Environment variable with paths of the user's suite files, and of folders with such files."""


def suite_names() -> list[str]:
    """Return the names of all suites, sorted. Raises InputError for a bad TESTBED_SUITES."""
    return sorted(_suite_files())


def user_suites() -> list[str]:
    """Return the names of the suites in TESTBED_SUITES, in their order.

    Raises InputError for a path without suite files, and for a name that another suite already has.
    """
    return list(_user_suite_files())


def user_suite_file(name: str) -> Path | None:
    """Return the file of a user's suite; None for a suite of the package."""
    return _user_suite_files().get(name)


def cards_of_suites() -> list[str]:
    """Return the cards that the labs were written for."""
    return list(dict.fromkeys(card for name in suite_names() for card in suite_named(name).cards))


def suites_in_group(group: GroupOption) -> list[Suite]:
    """Return the suites of a group, sorted by name. 'both': the labs for one GPU, then the labs for several."""
    suites = [suite_named(name) for name in suite_names()]
    groups = ("single", "multi") if group == "both" else (group,)
    return sorted((one for one in suites if one.group in groups), key=lambda one: groups.index(one.group))


@cache
def suite_named(name: str) -> Suite:
    """Return the suite of that name. Raises InputError for an unknown name, and for a file with a mistake."""
    files = _suite_files()
    if name not in files:
        if name.endswith(".yaml"):
            raise InputError(f"unknown suite {name!r}; a suite's file is given as --suite-file {name}")
        row = name.rpartition("/")[2]
        if suites := _suites_with_row(row, files):
            hint = f"{row} is a row of {' and '.join(suites)}"
            raise InputError(f"unknown suite {name!r} ({hint}); allowed: {', '.join(sorted(files))}")
        raise unknown_name_error("suite", name, sorted(files))
    return read_suite(files[name])


def _suites_with_row(row: str, files: dict[str, Path]) -> list[str]:
    """Return the names of the suites that can be read and have this row."""
    found = []
    for name, path in sorted(files.items()):
        with suppress(InputError):
            found += [name for known in read_suite(path).rows if known.id == row]
    return found


def read_suite(path: Path, name: str | None = None) -> Suite:
    """Read the suite in ``path`` and check each row on each card.

    ``name``: the expected name of the suite; None: the file's name without .yaml. Raises InputError for the first
    mistake, with file, row, value and allowed values.
    """
    suite, mistakes = suite_and_mistakes(read_document(path), name or path.stem)
    if mistakes:
        raise InputError(f"{path.name}: {mistakes[0].text}")
    assert suite is not None
    return suite


def _suite_files() -> dict[str, Path]:
    return {path.stem: path for path in LABS.glob("*.yaml")} | _user_suite_files()


def _user_suite_files() -> dict[str, Path]:
    """Return the suite files of TESTBED_SUITES by suite name."""
    files: dict[str, Path] = {}
    for place in filter(None, os.environ.get(SUITES_VARIABLE, "").split(os.pathsep)):
        for path in _yaml_files_at(Path(place).expanduser()):
            taken = files.get(path.stem) or next(LABS.glob(f"{path.stem}.yaml"), None)
            if taken is not None and taken.resolve() != path.resolve():
                raise InputError(f"{path}: {taken} also defines the suite {path.stem!r}; rename the file and its suite")
            files[path.stem] = path
    return files


def _yaml_files_at(place: Path) -> list[Path]:
    if place.is_file() and place.suffix == ".yaml":
        return [place]
    found = sorted(place.glob("*.yaml")) if place.is_dir() else []
    if not found:
        raise InputError(f"{place}: no suite file found; allowed: a file that ends in .yaml, or a folder of such files")
    return found
