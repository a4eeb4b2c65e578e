"""Compare two runs of one suite: the results of each row, worse ones first, and options and settings that differ."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.report.words import ran_on
from experiments.results.quantities import value_of
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Outcome, Record, Result
from experiments.results.verdict_changes import VerdictChange, verdict_changes
from experiments.run_options import SHOWN_OPTIONS
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Quantity

COMPARISON_SCHEMA_VERSION: Literal[3] = 3
ORIGIN_FIELDS = ("recipe_version", "git_commit", "host")
"""Fields of run.json that no option sets."""
WARNED_OPTIONS = ("size", "card")
"""Options whose difference is shown as a warning, because values then compare only with care."""
RUN_FIELDS = frozenset(Run.model_fields)
OUTCOMES_BEST_FIRST: tuple[Outcome, ...] = ("fits", "oom", "host_oom", "timeout", "error", "refused")
MIN_CHANGE = 0.02
"""Smallest relative difference that counts as a change."""


class Change(Record):
    """A measured value in both runs; None if a run does not have it."""

    a: float | None
    b: float | None
    ratio: float | None = Field(
        description="b over a; None if either is missing, a is 0, or the sizes of the runs differ"
    )


class Difference(Record):
    """An option, setting, device or version that differs between the runs; empty if a run has none."""

    what: str
    a: str
    b: str


class RowComparison(Record):
    """One row in both runs. An outcome of None: the row has no result in that run. Memory in GiB."""

    row: str
    outcome_a: Outcome | None
    outcome_b: Outcome | None
    ran_on_a: str
    ran_on_b: str
    same_experiment: bool | None = Field(description="the fingerprints are equal; None if a result is missing")
    settings: tuple[Difference, ...] = Field(description="the row's settings that differ")
    peak_gib: Change
    reserved_gib: Change
    samples_per_s: Change

    @property
    def badness(self) -> float:
        """Return how much worse the row is in the second run, first by outcome, then by the largest ratio of a value.

        Negative if the row is better, 0 if no difference is known.
        """
        if self.outcome_a is None or self.outcome_b is None:
            return 0.0
        worse = OUTCOMES_BEST_FIRST.index(self.outcome_b) - OUTCOMES_BEST_FIRST.index(self.outcome_a)
        if worse:
            return 100.0 * worse
        speed, memory = self.samples_per_s.ratio, self.peak_gib.ratio
        ratios = [1 / speed if speed else 1.0, memory or 1.0]
        ratio = max(ratios, key=lambda ratio: abs(ratio - 1))
        return ratio - 1 if abs(ratio - 1) >= MIN_CHANGE else 0.0


class Comparison(Record):
    """Two runs of one suite side by side; both are evaluated with the current suites."""

    schema_version: Literal[3] = COMPARISON_SCHEMA_VERSION
    a: Run
    b: Run
    names: tuple[str, str] = Field(description="what tells the runs apart: name and date, with the folder if needed")
    unlike: tuple[Difference, ...] = Field(description="size and card, if they differ: values then compare with care")
    differences: tuple[Difference, ...]
    packages: tuple[str, ...] = Field(default=(), description="names of the libraries of either run")
    rows: tuple[RowComparison, ...]
    verdicts: tuple[VerdictChange, ...] = Field(description="the statements whose status differs, worse ones first")

    @property
    def rows_worse_first(self) -> list[RowComparison]:
        """Return the rows in the order of how much worse they are in the second run; those in one run only last."""
        return sorted(self.rows, key=lambda row: (row.outcome_a is None or row.outcome_b is None, -row.badness))


def compare(a: RunFolder, b: RunFolder) -> Comparison:
    """Compare the runs in ``a`` and ``b``. Raises InputError if one is not a run, or if their suites differ."""
    run_a, run_b = a.read_run(), b.read_run()
    if run_a.suite != run_b.suite:
        raise InputError(f"{b.path}: suite = {run_b.suite!r}: only runs of one suite compare; allowed: {run_a.suite!r}")
    results_a, results_b = a.results(), b.results()
    suite = a.suite()
    unlike = tuple(_differences(_values(run_a, WARNED_OPTIONS), _values(run_b, WARNED_OPTIONS)))
    ids = [row.id for row in suite.rows if row.id in {*run_a.rows, *run_b.rows}]
    rows = [_row(row, results_a.get(row), results_b.get(row), run_a.size == run_b.size) for row in ids]
    changes = verdict_changes(evaluate_run(suite, a).best.verdicts, evaluate_run(suite, b).best.verdicts)
    return Comparison(
        a=run_a,
        b=run_b,
        names=_run_labels((a, run_a), (b, run_b)),
        unlike=unlike,
        differences=tuple(_differences(_comparable_values(run_a, results_a), _comparable_values(run_b, results_b))),
        packages=tuple(sorted({name for one in (*results_a.values(), *results_b.values()) for name in one.versions})),
        rows=tuple(rows),
        verdicts=tuple(sorted(changes, key=lambda change: -change.worse)),
    )


def _run_labels(*runs: tuple[RunFolder, Run]) -> tuple[str, str]:
    first, second = (f"{run.run_id}, {run.started_at[:16].replace('T', ' ')}" for _, run in runs)
    if first != second:
        return first, second
    (a, _), (b, _) = runs
    return f"{first} ({a.path})", f"{second} ({b.path})"


def _row(row: str, a: Result | None, b: Result | None, same_size: bool) -> RowComparison:
    return RowComparison(
        row=row,
        outcome_a=a.outcome if a else None,
        outcome_b=b.outcome if b else None,
        ran_on_a=ran_on(a) if a else "",
        ran_on_b=ran_on(b) if b else "",
        same_experiment=a.fingerprint == b.fingerprint if a and b else None,
        settings=tuple(_differences(_settings(a.spec), _settings(b.spec))) if a and b else (),
        peak_gib=_change_of("peak_gib", a, b, same_size),
        reserved_gib=_change_of("reserved_gib", a, b, same_size),
        samples_per_s=_change_of("samples_per_s", a, b, same_size),
    )


def _settings(spec: RowSpec) -> dict[str, str]:
    """Return the row's settings, without the options of the run, which the comparison lists separately."""
    plain: dict[str, Any] = spec.model_dump(mode="json", exclude=set(RUN_FIELDS))
    settings = plain.pop("settings")
    return {name: str(value) for name, value in {**plain, **settings}.items()}


def _change_of(quantity: Quantity, a: Result | None, b: Result | None, same_size: bool) -> Change:
    value_a, value_b = (value_of(quantity, result) if result else None for result in (a, b))
    ratio = value_b / value_a if same_size and value_a and value_b is not None else None
    return Change(a=value_a, b=value_b, ratio=ratio)


def _values(run: Run, names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(getattr(run, name) or "") for name in names}


def _differences(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    for what in dict.fromkeys([*a, *b]):
        if a.get(what, "") != b.get(what, ""):
            yield Difference(what=what, a=a.get(what, ""), b=b.get(what, ""))


def _comparable_values(run: Run, results: Mapping[str, Result]) -> dict[str, str]:
    """Return the run's options and the machines and versions of its rows, by name."""
    facts = {name.replace("_", " "): value for name, value in _values(run, (*SHOWN_OPTIONS, *ORIGIN_FIELDS)).items()}
    seen: dict[str, set[str]] = {}
    for result in results.values():
        seen.setdefault("device", set()).add(ran_on(result))
        seen.setdefault("driver", set()).add(result.device.driver or "")
        seen.setdefault("training code", set()).add(result.code)
        for library, version in result.versions.items():
            seen.setdefault(library, set()).add(version)
    return facts | {what: ", ".join(sorted(filter(None, values))) for what, values in seen.items()}
