"""Checks of a machine or a site. The text of a failed check says how to fix the problem, and contains no secret."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from provision.errors import ProvisionError, Unreachable

Status = Literal["ok", "warning", "failed", "not checked"]
LABELS: dict[Status, str] = {"ok": "ok  ", "warning": "warn", "failed": "FAIL", "not checked": "skip"}
RETRY_FIX = "retry later, and check chameleoncloud.org for outages"


@dataclass(frozen=True)
class Check:
    """The result of a check: its name, its status, and one line with the finding and the fix.

    needed_for: what the machine can run only if the status is ``ok``. A check with a ``warning`` counts as passed.
    """

    name: str
    status: Status
    text: str
    needed_for: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the check was made and did not fail."""
        return self.status in ("ok", "warning")

    @property
    def line(self) -> str:
        """The result in one line."""
        consequence = f" (needed for {', '.join(self.needed_for)})" if self.needed_for and self.status != "ok" else ""
        return f"{LABELS[self.status]}  {self.name}: {self.text}{consequence}"


def run_check(name: str, check: Callable[[], str], needed_for: tuple[str, ...] = ()) -> Check:
    """Run a check: ``check`` returns the finding, or raises a ProvisionError if the check fails."""
    try:
        return Check(name, "ok", check(), needed_for)
    except Unreachable as problem:
        return Check(name, "failed", f"{problem}; {RETRY_FIX}", needed_for)
    except ProvisionError as problem:
        return Check(name, "failed", str(problem), needed_for)


def skip_checks(names: Iterable[str], failed_check: str) -> list[Check]:
    """Return a skipped check for each name. failed_check: the name of the failed check that these checks depend on."""
    return [Check(name, "not checked", f"needs {failed_check}") for name in names]


def summary_in_words(checks: Sequence[Check]) -> str:
    """Return the number of failed checks and the name of the first one, in words."""
    failed = [check.name for check in checks if check.status == "failed"]
    unchecked = sum(check.status == "not checked" for check in checks)
    if not failed:
        warnings = sum(check.status == "warning" for check in checks)
        return f"none of {len(checks)} failed" + (f", {warnings} with a warning" if warnings else "")
    more = f", {unchecked} not checked" if unchecked else ""
    return f"{len(failed)} of {len(checks)} failed{more}; start with: {failed[0]}"


def abilities_in_words(checks: Sequence[Check]) -> str:
    """Return in words what this machine can run and what it cannot run, with the checks that prevent it."""
    unmet: dict[str, list[str]] = {}
    for check in checks:
        for ability in check.needed_for:
            unmet.setdefault(ability, []).extend([check.name] if check.status != "ok" else [])
    can = ", ".join(ability for ability, names in unmet.items() if not names)
    cannot = ", ".join(f"{ability} (see {', '.join(names)})" for ability, names in unmet.items() if names)
    return f"this machine can run: {can or 'nothing'}" + (f"; not: {cannot}" if cannot else "")
