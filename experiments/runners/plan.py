"""Plan a run: which rows have to run, and why."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from experiments.errors import InputError
from experiments.results.provenance import code_sha256
from experiments.results.run_folder import RUN_FILE, Run, RunFolder
from experiments.results.schema import EARLIER_FOLDER, ERROR_OUTCOMES, RESULT_FILE, SPEC_FILE, Result, read_result
from experiments.run_options import IDENTITY_OPTIONS
from experiments.runners.software import Software, software_changes
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite


@dataclass(frozen=True)
class PlannedRow:
    """The plan of one row: whether to run it or to keep its result. why: the reason, as shown to the user.

    is_outdated: whether the row has a valid result and runs only because versions, driver or GPU have changed.
    """

    spec: RowSpec
    must_run: bool
    why: str
    is_outdated: bool = False

    @property
    def row(self) -> str:
        return self.spec.row


def plan(
    suite: Suite,
    run: Run,
    folder: RunFolder,
    rerun: bool = False,
    software: Callable[[], Software | None] = lambda: None,
    keep_outdated: bool = False,
) -> list[PlannedRow]:
    """Return the plan of every row of ``run``, whose results are in ``folder``.

    rerun: whether to run finished rows again. software: returns the target's software, None if unknown; called only if
    there is a valid result. keep_outdated: whether to keep results that were measured with other software; otherwise
    their rows run again. Raises InputError if a result has another schema version.
    """
    planned = [_plan_row(run.spec(suite, row), folder, rerun) for row in run.rows]
    now = software() if any(not row.must_run for row in planned) else None
    return [row if row.must_run or now is None else _check_software(row, folder, now, keep_outdated) for row in planned]


def continue_run(folder: RunFolder, run: Run, suite: Suite) -> Run:
    """Return ``run`` with the rows of the earlier run in ``folder`` added.

    Raises InputError if the folder has a run with another version of the suite or with other options.
    """
    if not (folder.path / RUN_FILE).exists():
        return run
    before = folder.read_run()
    fix = "choose another --run-id or remove the folder"
    if before.recipe_version != run.recipe_version:
        raise InputError(
            f"{folder.path}: has results of version {before.recipe_version} of suite {before.suite},"
            f" which is now version {run.recipe_version}; {fix}"
        )
    for choice in IDENTITY_OPTIONS:
        then, now = getattr(before, choice), getattr(run, choice)
        if then != now:
            raise InputError(f"{folder.path}: has results with {choice} {then}, but {choice} is now {now}; {fix}")
    rows = {*before.rows, *run.rows}
    return before.model_copy(update={"rows": tuple(row.id for row in suite.rows if row.id in rows), "data": run.data})


def _plan_row(spec: RowSpec, folder: RunFolder, rerun: bool) -> PlannedRow:
    path = folder.row_folder(spec)
    if not (path / RESULT_FILE).exists():
        why = "the last run was interrupted" if (path / SPEC_FILE).exists() else "no result yet"
        return PlannedRow(spec, True, why)
    result = read_result(path / RESULT_FILE)
    if why := _rerun_reason(spec, result):
        return PlannedRow(spec, True, why)
    if rerun:
        return PlannedRow(spec, True, "--rerun")
    return PlannedRow(spec, False, f"finished: {result.outcome}")


def _check_software(row: PlannedRow, folder: RunFolder, now: Software, keep_outdated: bool) -> PlannedRow:
    """Return the new plan of a row with a valid result. The row runs again if the software has changed since."""
    found = ", ".join(software_changes(read_result(folder.row_folder(row.spec) / RESULT_FILE), now))
    if not found:
        return row
    if keep_outdated:
        return replace(row, why=f"{row.why}; --keep-outdated: {found}")
    return replace(row, must_run=True, why=f"{found}; the old result is kept in {EARLIER_FOLDER}/", is_outdated=True)


def _rerun_reason(spec: RowSpec, result: Result) -> str:
    """Return why a row with this result has to run again; "" if the result is valid."""
    if result.outcome == "rejected":
        return f"rejected in the last run: {result.reason}"
    if result.fingerprint != spec.fingerprint:
        changed = ", ".join(_changed_settings(result.spec, spec))
        return f"settings changed: {changed}" if changed else "the format of the settings changed"
    if result.code != code_sha256():
        return "training code changed"
    if result.outcome in ERROR_OUTCOMES:
        return f"the last run failed: {result.reason}"
    return ""


def _changed_settings(old: RowSpec, new: RowSpec) -> list[str]:
    """Return each changed setting as 'batch_size 16 -> 8'."""
    before = {**old.model_dump(exclude={"settings"}), **old.settings.model_dump()}
    after = {**new.model_dump(exclude={"settings"}), **new.settings.model_dump()}
    return [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
