"""Which rows of a run are still to be run, and why."""

from dataclasses import dataclass

from experiments.errors import InputError
from experiments.results.provenance import code_sha256
from experiments.results.run_folder import RUN_FILE, Run, RunFolder
from experiments.results.schema import BROKEN, RESULT_FILE, SPEC_FILE, Result, read_result
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite

CHOICES = (
    "suite",
    "site",
    "card",
    "size",
    "length",
    "weights",
    "input",
    "data_sha256",
    "gpus_per_node",
    "image_variant",
)


@dataclass(frozen=True)
class Planned:
    """What is to become of one row: run (why says what for), or kept (why says as what it finished)."""

    spec: RowSpec
    run: bool
    why: str

    @property
    def row(self) -> str:
        return self.spec.row


def plan(suite: Suite, run: Run, folder: RunFolder, rerun: bool = False) -> list[Planned]:
    """What is to become of every row of ``run`` in ``folder``; ``rerun`` runs finished rows again too.

    InputError when a result is of another schema version.
    """
    return [_planned(run.spec(suite, row), folder, rerun) for row in run.rows]


def continued(folder: RunFolder, run: Run, suite: Suite) -> Run:
    """``run`` as it goes on in ``folder``: with the rows that were asked for before beside its own.

    InputError when the folder belongs to another version of the recipe or to other choices.
    """
    if not (folder.path / RUN_FILE).exists():
        return run
    before = folder.read_run()
    remedy = "give another --run-id or remove the folder"
    if before.recipe_version != run.recipe_version:
        raise InputError(
            f"{folder.path}: made with version {before.recipe_version} of recipe {before.suite},"
            f" which is now version {run.recipe_version}; {remedy}"
        )
    for choice in CHOICES:
        then, now = getattr(before, choice), getattr(run, choice)
        if then != now:
            raise InputError(f"{folder.path}: made with {choice} {then}, and now {choice} is {now}; {remedy}")
    rows = {*before.rows, *run.rows}
    return before.model_copy(update={"rows": tuple(row.id for row in suite.rows if row.id in rows), "data": run.data})


def _planned(spec: RowSpec, folder: RunFolder, rerun: bool) -> Planned:
    path = folder.path / spec.suite / spec.row
    if not (path / RESULT_FILE).exists():
        why = "the last run was cut off" if (path / SPEC_FILE).exists() else "no result yet"
        return Planned(spec, True, why)
    result = read_result(path / RESULT_FILE)
    if why := _why_again(spec, result):
        return Planned(spec, True, why)
    if rerun:
        return Planned(spec, True, "asked for again")
    return Planned(spec, False, f"finished: {result.outcome}")


def _why_again(spec: RowSpec, result: Result) -> str:
    """Why a row with this result is to be run again; empty when the result stands."""
    if result.outcome == "refused":
        return f"refused before: {result.reason}"
    if result.fingerprint != spec.fingerprint:
        return "settings changed: " + (", ".join(_differences(result.spec, spec)) or "the way they are written")
    if result.code != code_sha256():
        return "training code changed"
    if result.outcome in BROKEN:
        return f"the last run ended badly: {result.reason}"
    return ""


def _differences(old: RowSpec, new: RowSpec) -> list[str]:
    """What differs, in words: 'batch_size 16 -> 8'."""
    before = {**old.model_dump(exclude={"settings"}), **old.settings.model_dump()}
    after = {**new.model_dump(exclude={"settings"}), **new.settings.model_dump()}
    return [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
