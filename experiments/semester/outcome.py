"""Results of a check: which statements pass with which versions, what flipped since the last check, what to fix."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.history.changes import RunChanges, run_changes
from experiments.history.database import open_history
from experiments.history.series import read_series
from experiments.results.run_folder import PAGE_FILE, VERDICT_FILE, Run
from experiments.results.verdicts import Evaluation, Status, Verdict
from experiments.semester.parts import CheckPart, PartKind
from experiments.semester.state import Check, checks_in, database_of
from experiments.semester.versions import Versions
from provision.files import read_bytes

STATUSES: tuple[Status, ...] = ("pass", "fail", "error", "not evaluated")


@dataclass(frozen=True)
class PartRun:
    """The evaluated run of one part. link: path of the run's report, relative to the check's folder."""

    versions: Versions
    kind: PartKind
    run: Run
    verdicts: tuple[Verdict, ...]
    link: str

    def count(self, status: Status) -> int:
        return sum(one.status == status for one in self.verdicts)


class Flip(NamedTuple):
    """A change since the last check.

    where: the part of the check, or the suite with its options. what: the change, in words. causes: differences that
    may explain the change, such as versions.
    """

    where: str
    what: str
    causes: tuple[str, ...]

    @property
    def line(self) -> str:
        """Return the flip as one line."""
        return f"{self.where}: {self.what} ({'; '.join(self.causes) or 'nothing else differs'})"


class FailingStatement(NamedTuple):
    """A statement that fails, or is an error, with a set of versions. verdicts: its verdict by set of versions."""

    suite: str
    card: str
    says: str
    verdicts: Mapping[Versions, Verdict]


@dataclass(frozen=True)
class Outcome:
    """The results of a check.

    previous_check: None if this is the first check. titles: the titles of the parts, by name. to_fix: what to fix in
    the labs, one sentence each.
    """

    check: Check
    previous_check: Check | None
    titles: Mapping[str, str]
    runs: tuple[PartRun, ...]
    flips: tuple[Flip, ...]
    failing_statements: tuple[FailingStatement, ...]
    to_fix: tuple[str, ...]

    @property
    def problems(self) -> dict[str, str]:
        """Return the reason for each part without a result."""
        return {name: one.problem for name, one in self.check.done.items() if one.problem}

    def count(self, versions: Versions, status: Status) -> int:
        """Return the number of statements with that status, over all runs of a set of versions."""
        return sum(run.count(status) for run in self.runs if run.versions == versions)

    @property
    def headline(self) -> str:
        """Return a sentence: how many statuses and outcomes flipped since the last check."""
        if self.previous_check is None:
            return "This is the first check, so nothing can have flipped."
        if not self.flips:
            return f"No status or outcome flipped since {self.previous_check.begun_at:%d %B %Y}."
        return f"Statuses and outcomes flipped since {self.previous_check.begun_at:%d %B %Y}: {len(self.flips)}."


def outcome_of(folder: Path, check: Check, parts: list[CheckPart]) -> Outcome:
    """Return the results of the check in ``folder``."""
    earlier = [one for _, one in checks_in(folder.parent) if one.begun_at < check.begun_at and one.ended_at]
    before = earlier[-1] if earlier else None
    runs = tuple(found for part in parts for found in _part_runs(folder, part))
    failing = tuple(_failing_statements(runs))
    titles = {part.name: part.title for part in parts}
    flips_of_runs = (flip for versions in check.version_sets for flip in run_flips(folder.parent, check, versions))
    flips = (*_flips_of_parts(check, before, titles), *flips_of_runs) if before else ()
    return Outcome(check, before, titles, runs, flips, failing, tuple(_list_fixes(check, titles, failing)))


def run_flips(folder: Path, check: Check, versions: Versions) -> Iterator[Flip]:
    """Yield the flips in the runs of this check with these versions. folder: folder of all checks and their history."""
    path = database_of(folder, versions)
    if not path.is_file():
        return
    with open_history(path) as database:
        all_series = read_series(database)
    for series in all_series:
        found = run_changes(series)
        newest = series.runs[-1]
        if found and found[-1].run is newest and newest.started_at >= check.begun_at.isoformat(timespec="seconds"):
            yield from _flips_of_changes(f"{versions} versions: {series.title}", found[-1])


def evaluations_in(folder: Path) -> Iterator[tuple[Path, Evaluation]]:
    """Yield the folder and the evaluation of each evaluated run in ``folder``, the results folder of a part."""
    for path in sorted(folder.glob(f"*/{VERDICT_FILE}")):
        if not path.parent.is_symlink():
            yield path.parent, Evaluation.model_validate_json(read_bytes(path))


def version_differences(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Return the packages whose versions differ, such as 'torch 2.5.1 → 2.13.0'."""
    names = dict.fromkeys([*then, *now])
    return tuple(
        f"{name} {then.get(name, 'none')} → {now.get(name, 'none')}"
        for name in names
        if then.get(name) != now.get(name)
    )


def _part_runs(folder: Path, part: CheckPart) -> Iterator[PartRun]:
    for run, evaluation in evaluations_in(folder / part.name):
        link = (run / PAGE_FILE).relative_to(folder).as_posix()
        yield PartRun(part.versions, part.kind, evaluation.run, evaluation.verdicts, link)


def _failing_statements(runs: tuple[PartRun, ...]) -> Iterator[FailingStatement]:
    """Yield the statements that fail, or are an error, with at least one set of versions."""
    for key in dict.fromkeys((one.run.suite, one.run.card, one.run.size) for one in runs):
        comparable = [one for one in runs if (one.run.suite, one.run.card, one.run.size) == key]
        sentences = {verdict.id: verdict.says for one in comparable for verdict in one.verdicts}
        for id_, sentence in sentences.items():
            verdicts = {one.versions: verdict for one in comparable for verdict in one.verdicts if verdict.id == id_}
            evaluated = {one.status for one in verdicts.values()} - {"not evaluated"}
            if evaluated - {"pass"}:
                yield FailingStatement(key[0], key[1], sentence, verdicts)


def _flips_of_parts(check: Check, before: Check, titles: Mapping[str, str]) -> Iterator[Flip]:
    """Yield a flip for each part that has a result now but had none in the last check, or the reverse."""
    for name, done in check.done.items():
        then = before.done.get(name)
        if then and bool(then.problem) != bool(done.problem):
            what = f"has no result any more: {done.problem}" if done.problem else "has a result again"
            yield Flip(titles[name], what, _installed_changes(check, before, name))


def _installed_changes(check: Check, before: Check, name: str) -> tuple[str, ...]:
    versions = next(one for one in check.version_sets if name.startswith(one))
    return version_differences(before.installed.get(versions, {}), check.installed.get(versions, {}))


def _flips_of_changes(where: str, found: RunChanges) -> Iterator[Flip]:
    causes = tuple(one.sentence for one in found.causes)
    for one in found.changed:
        yield Flip(where, one.sentence, causes)


def _list_fixes(check: Check, titles: Mapping[str, str], failing: tuple[FailingStatement, ...]) -> Iterator[str]:
    """Yield what to fix: parts without a result, and statements that fail with the current versions.

    Known failures are left out. A statement that passes with the current versions and fails with the newest ones is
    also yielded.
    """
    for name, done in check.done.items():
        if done.problem:
            yield f"{titles[name]}: no result: {done.problem}"
    for statement in failing:
        today, newest = (statement.verdicts.get(name) for name in ("current", "newest"))
        if today and today.status == "fail" and not today.known_failure:
            yield f"{statement.suite} on {statement.card}: {statement.says} ({today.reason or today.value})"
        elif today and today.status == "pass" and newest and newest.status in ("fail", "error"):
            changed = ", ".join(version_differences(check.installed["current"], check.installed["newest"]))
            where = f"{statement.suite} on {statement.card}, with the newest versions"
            yield f"{where}: {statement.says} ({newest.reason}; {changed})"
