"""Run the check before a semester: run its parts one after the other, record their runs, and send messages."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from experiments.history.database import open_history, record_run
from experiments.notify.send import NOTIFY_VARIABLE
from experiments.results.run_folder import run_folders
from experiments.results.wording import format_duration
from experiments.semester.outcome import Flip, evaluations_in, run_flips
from experiments.semester.parts import CheckLease, CheckPart, command_of_part, parts_of
from experiments.semester.process import (
    STALL_LIMIT_S,
    StallDetector,
    first_line_with,
    last_change_s,
    last_line,
    run_logged,
)
from experiments.semester.state import Check, EndedPart, checks_in, database_of, find_interrupted_check, write_check
from experiments.semester.versions import NotInstalled, Versions, python_of, versions_in
from experiments.system.files import CODE_FOLDER, point_link
from experiments.system.lock import lock_folder

LATEST = "latest"
LOG = "log.txt"
END_LIMIT_S = 30.0
"""Maximum seconds that an interrupted part has to end. A part on a lease has no limit: it first releases the lease."""
Send = Callable[[str, str], None]
"""Function that sends a message, given its title and its text."""
FindPython = Callable[[Versions, Path], Path]
"""Function that returns the Python of an environment, given its set of versions and the folder of the check."""


@dataclass(frozen=True)
class CheckRequest:
    """A request for a check. folder: folder of all checks and their history."""

    folder: Path
    version_sets: tuple[Versions, ...]
    suites: tuple[str, ...]
    lease: CheckLease | None
    command: str

    def parts(self) -> list[CheckPart]:
        return parts_of(self.version_sets, self.suites, self.lease)


class InstalledVersions(NamedTuple):
    """The Python interpreter of a set of versions, and the versions of the packages that affect a result."""

    python: Path
    versions: dict[str, str]


@dataclass(frozen=True)
class CheckCallbacks:
    """Functions that a check calls. on_lease: called every few seconds while a part on a lease runs."""

    print_line: Callable[[str], None]
    send: Send
    on_lease: Callable[[], None] = lambda: None
    find_python: FindPython = lambda versions, folder: python_of(versions, folder, datetime.now(UTC).date())


def run_check(request: CheckRequest, callbacks: CheckCallbacks) -> tuple[Path, Check]:
    """Run all parts that have not ended yet; return the folder and the state of the check.

    An interrupted check with the same parts is resumed. A failure of a part is recorded, and the other parts run.
    Raises InputError if another check in the folder is running; the error names the process of that check.
    """
    parts = request.parts()
    with lock_folder(request.folder):
        folder, check = _resume_or_begin(request, tuple(part.name for part in parts))
        earlier = [one for _, one in checks_in(request.folder) if one.begun_at < check.begun_at]
        installed: dict[Versions, InstalledVersions] = {}
        reported: set[Flip] = set()
        for number, part in enumerate(parts, 1):
            if part.name in check.done and part.kind != "environment":
                continue
            left = _parts_time_left(parts[number - 1 :], check, earlier)
            callbacks.print_line(
                f"[{number}/{len(parts)}] {part.title}; {format_duration(check.duration_s())} so far{left}"
            )
            started_s = time.monotonic()
            try:
                problem = _run_part(part, request, folder, installed, callbacks)
            except NotInstalled as error:
                problem = str(error)
            took_s = time.monotonic() - started_s + (check.done[part.name].took_s if part.name in check.done else 0)
            callbacks.print_line(f"  {problem or 'done'} ({format_duration(took_s)})")
            check = _with_ended_part(check, part, EndedPart(took_s=took_s, problem=problem), installed)
            write_check(folder, check)
            if earlier:
                reported |= _report_flips(part, request, check, reported, callbacks)
        check = check.model_copy(update={"ended_at": datetime.now(UTC)})
        write_check(folder, check)
        point_link(request.folder / LATEST, folder.name)
    return folder, check


def _resume_or_begin(request: CheckRequest, plan: tuple[str, ...]) -> tuple[Path, Check]:
    now = datetime.now(UTC)
    if found := find_interrupted_check(request.folder, plan, now):
        return found
    check = Check(begun_at=now, command=request.command, plan=plan, version_sets=request.version_sets)
    folder = _new_folder(request.folder, now)
    write_check(folder, check)
    return folder, check


def _new_folder(parent: Path, now: datetime) -> Path:
    """Return a path in ``parent`` for a new folder, named after ``now`` or after the next second that is free."""
    while (folder := parent / f"{now:%Y-%m-%dT%H%M%S}").exists():
        now += timedelta(seconds=1)
    return folder


def _run_part(
    part: CheckPart,
    request: CheckRequest,
    check_folder: Path,
    installed: dict[Versions, InstalledVersions],
    callbacks: CheckCallbacks,
) -> str:
    """Run a part; return the reason why it has no result, or "" if it has one. Raises NotInstalled."""
    if part.kind == "environment":
        python = callbacks.find_python(part.versions, check_folder)
        installed[part.versions] = InstalledVersions(python, versions_in(python))
        return ""
    if part.versions not in installed:
        return f"not run: the {part.versions} versions are not installed"
    folder = check_folder / part.name
    folder.mkdir(exist_ok=True)
    arguments = command_of_part(part, installed[part.versions].python, folder, request.suites, request.lease)
    poll = _poll_function(part, folder, callbacks)
    kill_after_s = None if part.kind == "lease" else END_LIMIT_S
    code = run_logged(arguments, folder / LOG, _process_variables(), poll, kill_after_s)
    evaluations = [evaluation for _, evaluation in evaluations_in(folder)]
    if not evaluations:
        return f"exit code {code}: {last_line(folder / LOG)}"
    with open_history(database_of(request.folder, part.versions), create=True) as database:
        for run in run_folders(folder):
            record_run(database, run)
    if part.kind == "predictions" and all(one.count("not evaluated") == len(one.verdicts) for one in evaluations):
        return f"no statement was evaluated: {first_line_with('not predicted', folder / LOG)}"
    return f"exit code {code}: {last_line(folder / LOG)}" if part.kind == "lease" and code > 1 else ""


def _report_flips(
    part: CheckPart, request: CheckRequest, check: Check, reported: set[Flip], callbacks: CheckCallbacks
) -> set[Flip]:
    """Print the flips of a part that are not in ``reported``, and send them as a message; return these flips."""
    new = set(run_flips(request.folder, check, part.versions)) - reported
    if new:
        lines = sorted(flip.line for flip in new)
        callbacks.print_line("\n".join(f"  flipped: {line}" for line in lines))
        callbacks.send(f"testbed: statuses and outcomes flipped in {part.title}: {len(new)}", "\n".join(lines))
    return new


def _poll_function(part: CheckPart, folder: Path, callbacks: CheckCallbacks) -> Callable[[], None]:
    """Return a function to call every few seconds while a part runs.

    The function checks the lease (see CheckCallbacks.on_lease) and reports once if the part makes no progress.
    """
    stalls = StallDetector()

    def poll() -> None:
        if part.kind == "lease":
            callbacks.on_lease()
        if stalls.is_new_stall(last_change_s(folder), time.time()):
            text = f"{part.title}: no progress for {format_duration(STALL_LIMIT_S)}; see {folder / LOG}"
            callbacks.print_line(f"  {text}")
            callbacks.send("testbed: no progress", text)

    return poll


def _process_variables() -> dict[str, str]:
    """Return the environment variables of the processes of parts: they send no messages and import this code."""
    variables = {name: value for name, value in os.environ.items() if name not in (NOTIFY_VARIABLE, "VIRTUAL_ENV")}
    return variables | {"PYTHONPATH": str(CODE_FOLDER)}


def _with_ended_part(
    check: Check, part: CheckPart, ended: EndedPart, installed: dict[Versions, InstalledVersions]
) -> Check:
    versions = {name: one.versions for name, one in installed.items()}
    return check.model_copy(update={"done": check.done | {part.name: ended}, "installed": versions})


def _parts_time_left(parts: Sequence[CheckPart], check: Check, earlier: Sequence[Check]) -> str:
    """Return the estimated time of ``parts`` as text; "" if it is unknown.

    A part is expected to take as long as in the last check that had this part, or else the mean time of this check's
    parts.
    """
    ended = [one.took_s for name, one in check.done.items() if not name.endswith("environment")]
    mean = sum(ended) / len(ended) if ended else None
    known = {name: done.took_s for one in earlier for name, done in one.done.items()}
    times = [known.get(part.name, mean) for part in parts if part.name not in check.done]
    if not times or None in times:
        return ""
    return f", about {format_duration(max(1.0, sum(filter(None, times))))} left"
