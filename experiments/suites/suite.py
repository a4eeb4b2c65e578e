"""Experiments as data: the suites by name, those of this package and those of the user, and their schema."""

import os
from functools import cache
from pathlib import Path

from experiments.errors import InputError, unknown
from experiments.suites.choices import Groups
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
    Suite,
)
from experiments.suites.yaml_schema import LABS

__all__ = [
    "LABS",
    "OWN_SUITES",
    "TEMPLATE",
    "Bounds",
    "Check",
    "Claim",
    "Expectation",
    "ExpectedOutcome",
    "LeaseEstimate",
    "Quantity",
    "ReferenceValue",
    "Row",
    "Suite",
    "own_suites",
    "read_suite",
    "suite_file",
    "suite_named",
    "suite_names",
    "suites_of",
]

TEMPLATE = LABS.parent / "template.yaml"
"""A suite to begin with."""
OWN_SUITES = "TESTBED_SUITES"
"""Environment variable: files of suites, and folders of them, in addition to the package's."""


def suite_names() -> list[str]:
    """Return the names of all suites, sorted. Raises InputError for a bad TESTBED_SUITES."""
    return sorted(_files())


def own_suites() -> list[str]:
    """Return the names of the suites in TESTBED_SUITES, in their order. Raises InputError if one cannot be used."""
    return list(_own_files())


def suite_file(name: str) -> Path | None:
    """Return the file of a suite of the user; None for one of the package."""
    return _own_files().get(name)


def cards_of_suites() -> list[str]:
    """Return the cards that the labs were written for."""
    return list(dict.fromkeys(card for name in suite_names() for card in suite_named(name).cards))


def suites_of(group: Groups) -> list[Suite]:
    """Return the suites of a group, or of both: labs of one GPU first, then by name."""
    suites = [suite_named(name) for name in suite_names()]
    order = {"single": 0, "multi": 1}
    return sorted((one for one in suites if group in ("both", one.group)), key=lambda one: order[one.group])


@cache
def suite_named(name: str) -> Suite:
    """Return the checked suite of that name. Raises InputError with the known suites, or with the file's problem."""
    files = _files()
    if name not in files:
        if name.endswith(".yaml"):
            raise InputError(f"unknown suite {name!r}; a suite's file is given as --suite-file {name}")
        raise unknown("suite", name, sorted(files))
    return read_suite(files[name])


def read_suite(path: Path, name: str | None = None) -> Suite:
    """Read the suite in ``path`` and check each row on each card.

    ``name``: the suite's name; None: the file's. Raises InputError with file, row, value and fix: the first mistake.
    """
    suite, mistakes = suite_and_mistakes(read_document(path), name or path.stem)
    if mistakes:
        raise InputError(f"{path.name}: {mistakes[0].text}")
    assert suite is not None
    return suite


def _files() -> dict[str, Path]:
    return {path.stem: path for path in LABS.glob("*.yaml")} | _own_files()


def _own_files() -> dict[str, Path]:
    """Return the files that TESTBED_SUITES names, by name of the suite."""
    files: dict[str, Path] = {}
    for place in filter(None, os.environ.get(OWN_SUITES, "").split(os.pathsep)):
        for path in _files_at(Path(place).expanduser()):
            taken = files.get(path.stem) or next(LABS.glob(f"{path.stem}.yaml"), None)
            if taken is not None and taken.resolve() != path.resolve():
                raise InputError(f"{path}: the suite {path.stem!r} is in {taken}, too; rename the file and its suite")
            files[path.stem] = path
    return files


def _files_at(place: Path) -> list[Path]:
    if place.is_file() and place.suffix == ".yaml":
        return [place]
    found = sorted(place.glob("*.yaml")) if place.is_dir() else []
    if not found:
        raise InputError(f"{place}: no suite there; allowed: a file that ends in .yaml, or a folder of such files")
    return found
