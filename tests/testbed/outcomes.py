"""Outcomes of tests by other projects, as stored in results.json, with the reason why a test does not pass here."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from experiments.results.provenance import git_commit
from experiments.system.files import write_atomically

Outcome = dict[str, Any]
"""The name of a test, its outcome, and further fields, such as the message of a failure."""


def differences(folder: Path) -> dict[str, str]:
    """Return the reasons in the folder's differences.yaml by the name of a test or a part of it."""
    return yaml.safe_load((folder / "differences.yaml").read_text()) or {}


def write_outcomes(file: Path | None, command: str, versions: object, tests: Sequence[Outcome]) -> dict[str, int]:
    """Write the outcomes of tests, if there is a file for them; return the number of each.

    versions: those of the tests and of what they test.
    """
    counts = dict(sorted(Counter(test["outcome"] for test in tests).items()))
    facts = {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "git_commit": git_commit(),
        "versions": versions,
        "outcomes": counts,
        "tests": tests,
    }
    if file:
        write_atomically(file, json.dumps(facts, indent=1) + "\n")
    return counts


def unexplained(tests: Sequence[Outcome]) -> list[str]:
    """Return the names of the tests that do not pass and have no reason."""
    return [test["test"] for test in tests if test["outcome"] != "passed" and not test.get("reason")]
