"""Checks of a machine or a site: each passes or names its remedy. No message contains a secret."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from provision.errors import ProvisionError, Unreachable

Status = Literal["ok", "warning", "failed", "not checked"]
LABELS: dict[Status, str] = {"ok": "ok  ", "warning": "warn", "failed": "FAIL", "not checked": "skip"}
RETRY = "retry later, and check chameleoncloud.org for outages"


@dataclass(frozen=True)
class Check:
    """The result of a check: its name, its status, and one line with the finding and the remedy.

    warning: something is missing that only ``needed_for`` needs. needed_for: what cannot be done unless it is ok.
    """

    name: str
    status: Status
    text: str
    needed_for: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it neither failed nor was left out."""
        return self.status in ("ok", "warning")

    @property
    def line(self) -> str:
        """The result in one line."""
        lacking = f" (needed for {', '.join(self.needed_for)})" if self.needed_for and self.status != "ok" else ""
        return f"{LABELS[self.status]}  {self.name}: {self.text}{lacking}"


def result_of(name: str, question: Callable[[], str], needed_for: tuple[str, ...] = ()) -> Check:
    """Return the check whose finding ``question`` returns, or whose failure it raises as a ProvisionError."""
    try:
        return Check(name, "ok", question(), needed_for)
    except Unreachable as problem:
        return Check(name, "failed", f"{problem}; {RETRY}", needed_for)
    except ProvisionError as problem:
        return Check(name, "failed", str(problem), needed_for)


def not_checked(names: Iterable[str], failed: str) -> list[Check]:
    """Return the checks that cannot be made because the check ``failed`` did not pass."""
    return [Check(name, "not checked", f"needs {failed}") for name in names]


def summary(checks: Sequence[Check]) -> str:
    """Return how many checks passed, and which failed one to begin with."""
    failed = [check.name for check in checks if check.status == "failed"]
    left_out = sum(check.status == "not checked" for check in checks)
    if not failed:
        warnings = sum(check.status == "warning" for check in checks)
        return f"none of {len(checks)} failed" + (f", {warnings} with a warning" if warnings else "")
    more = f", {left_out} not checked" if left_out else ""
    return f"{len(failed)} of {len(checks)} failed{more}; begin with {failed[0]}"


def abilities(checks: Sequence[Check]) -> str:
    """Return what this machine can do, and what it cannot do for the lack of what."""
    lacking: dict[str, list[str]] = {}
    for check in checks:
        for ability in check.needed_for:
            lacking.setdefault(ability, []).extend([check.name] if check.status != "ok" else [])
    can = ", ".join(ability for ability, names in lacking.items() if not names)
    cannot = ", ".join(f"{ability} (see {', '.join(names)})" for ability, names in lacking.items() if names)
    return f"this machine can run: {can or 'nothing'}" + (f"; not: {cannot}" if cannot else "")
