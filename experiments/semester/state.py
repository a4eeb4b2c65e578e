"""The state of a check on disk, from which an interrupted check is resumed."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, ValidationError

from experiments.results.schema import Record
from experiments.semester.versions import Versions
from experiments.system.files import write_atomically
from provision.files import read_bytes

STATE_FILE = "check.json"
MAX_AGE = timedelta(days=7)
"""An older interrupted check is not resumed, because its versions are no longer the newest."""


class EndedPart(Record):
    """A part that has ended."""

    took_s: float = Field(description="duration in seconds")
    problem: str = Field(default="", description="why the part has no result; empty if the part has a result")


class Check(Record):
    """The state of one run of `testbed semester`, which checks all suites (check.json)."""

    schema_version: Literal[1] = Field(default=1, description="version of this schema")
    begun_at: datetime = Field(description="start, UTC")
    ended_at: datetime | None = Field(default=None, description="end, UTC; None if the check runs or was interrupted")
    command: str = Field(description="command line that started the check")
    plan: tuple[str, ...] = Field(description="names of the check's parts, in their order")
    version_sets: tuple[Versions, ...] = Field(
        validation_alias=AliasChoices("version_sets", "sets"), description="sets of versions"
    )
    done: dict[str, EndedPart] = Field(default={}, description="ended parts by name")
    installed: dict[Versions, dict[str, str]] = Field(
        default={}, description="for each set of versions: the version of each package that affects a result"
    )

    def duration_s(self) -> float:
        """Return the seconds that the parts took, without interruptions."""
        return sum(one.took_s for one in self.done.values())


def database_of(folder: Path, versions: Versions) -> Path:
    """Return the database with the history of one set of versions."""
    return folder / f"history-{versions}.db"


def checks_in(folder: Path) -> list[tuple[Path, Check]]:
    """Return the checks in ``folder`` with their folders, oldest first, without checks that cannot be read."""
    found = []
    for path in folder.glob(f"*/{STATE_FILE}"):
        try:
            found.append((path.parent, Check.model_validate_json(read_bytes(path))))
        except ValidationError:
            continue
    return sorted((one for one in found if not one[0].is_symlink()), key=lambda one: one[1].begun_at)


def find_interrupted_check(folder: Path, plan: tuple[str, ...], now: datetime) -> tuple[Path, Check] | None:
    """Return the newest check and its folder, if it was interrupted, has the parts in ``plan`` and is not too old."""
    checks = checks_in(folder)
    if not checks:
        return None
    _, check = checks[-1]
    resumable = check.ended_at is None and check.plan == plan and now - check.begun_at < MAX_AGE
    return checks[-1] if resumable else None


def write_check(folder: Path, check: Check) -> None:
    """Write the state of a check to the check's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / STATE_FILE, check.model_dump_json(indent=2))
