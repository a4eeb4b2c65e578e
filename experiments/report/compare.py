"""Compare two runs of one suite: the results of each row, worse ones first, and options and settings that differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.report.words import machine_in_words
from experiments.results.changes.changed import MeasuredValues, RunChange, ValueKey, differing_facts, value_change
from experiments.results.changes.facts import outcome_facts, possible_causes, step_deviations, values_of_rows
from experiments.results.changes.noise import change_points
from experiments.results.quantities import value_of
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Outcome, Record, Result
from experiments.results.verdict_changes import VerdictChange, verdict_changes
from experiments.results.wording import COMMIT_DIGITS
from experiments.run_options import SHOWN_OPTIONS
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.suite import Quantity

COMPARISON_SCHEMA_VERSION: Literal[5] = 5
ORIGIN_FIELDS = ("recipe_version", "git_commit", "host")
"""Fields of run.json that no option sets."""
WARNED_OPTIONS = ("size", "card")
"""Options that cause a warning if the runs differ in them. The warning is shown before all values."""
Results = Mapping[str, Result]
RUN_FIELDS = frozenset(Run.model_fields)
OUTCOMES_BEST_FIRST: tuple[Outcome, ...] = ("fits", "oom", "host_oom", "timeout", "error", "rejected")
COMPARED_QUANTITIES: tuple[Quantity, ...] = ("peak_gib", "reserved_gib", "samples_per_s")
"""The quantities that a comparison always shows, even if they did not change."""
CAUSES_SHOWN_AS_OPTIONS = frozenset(("suite version", "commit", "node", "data", "data SHA-256", "device"))
"""Possible causes of a change that are shown among the options and origins of the runs."""


class Change(Record):
    """A measured value in two runs. before: in the run that the command names first. None: the run does not have it."""

    before: float | None
    after: float | None
    ratio: float | None = Field(
        description="after divided by before; None if either is missing, before is 0, or the sizes of the runs differ"
    )
    changed: bool = Field(description="the value changed by more than its noise, the variation between repeated runs")


class Difference(Record):
    """An option, setting, device or version that differs between the runs.

    what: its name. before, after: its values as text; empty if the run has no value.
    """

    what: str
    before: str
    after: str


class RowComparison(Record):
    """One row in both runs. An outcome of None: the row has no result in that run. Memory in GiB."""

    row: str
    outcome_before: Outcome | None
    outcome_after: Outcome | None
    ran_on_before: str
    ran_on_after: str
    same_experiment: bool | None = Field(description="the fingerprints are equal; None if a result is missing")
    settings: tuple[Difference, ...] = Field(description="the row's settings that differ")
    peak_gib: Change
    reserved_gib: Change
    samples_per_s: Change

    @property
    def worsening(self) -> float:
        """Return a sort key: positive if the row is worse in the second run, negative if it is better, else 0.

        If the outcomes differ: 100 times the difference of their positions in OUTCOMES_BEST_FIRST. If they are equal:
        the relative change of speed or of peak memory, whichever is larger.
        """
        if self.outcome_before is None or self.outcome_after is None:
            return 0.0
        worse = OUTCOMES_BEST_FIRST.index(self.outcome_after) - OUTCOMES_BEST_FIRST.index(self.outcome_before)
        if worse:
            return 100.0 * worse
        speed, memory = (one.ratio if one.changed else None for one in (self.samples_per_s, self.peak_gib))
        ratios = [1 / speed if speed else 1.0, memory or 1.0]
        return max(ratios, key=lambda ratio: abs(ratio - 1)) - 1


class Comparison(Record):
    """Two runs of one suite side by side; both are evaluated with the current suites."""

    schema_version: Literal[5] = COMPARISON_SCHEMA_VERSION
    before: Run
    after: Run
    names: tuple[str, str] = Field(description="labels of the runs: name and date, with the folder if needed")
    incomparable: tuple[Difference, ...] = Field(
        description="size and card of the runs if they differ; few values of such runs can be compared"
    )
    differences: tuple[Difference, ...]
    packages: tuple[str, ...] = Field(default=(), description="names of the libraries of either run")
    rows: tuple[RowComparison, ...]
    changed: tuple[Difference, ...] = Field(
        description="outcomes, facts and measured values of rows that changed; none if the sizes of the runs differ"
    )
    verdicts: tuple[VerdictChange, ...] = Field(description="the statements whose status differs, worse ones first")

    @property
    def status_or_outcome_changed(self) -> bool:
        """Return whether the status of a statement differs, or the outcome of a row that has a result in both runs."""
        outcomes = [
            (row.outcome_before, row.outcome_after) for row in self.rows if row.outcome_before and row.outcome_after
        ]
        return bool(self.verdicts) or any(a != b for a, b in outcomes)

    @property
    def rows_worse_first(self) -> list[RowComparison]:
        """Return the rows: first those that became worse, the worst first; last those that only one run has."""
        return sorted(
            self.rows, key=lambda row: (row.outcome_before is None or row.outcome_after is None, -row.worsening)
        )


def compare(a: RunFolder, b: RunFolder, earlier_values: Sequence[MeasuredValues] = ()) -> Comparison:
    """Compare the runs in the folders ``a`` (before) and ``b`` (after).

    earlier_values: measured values of earlier runs with the options of ``a``. They show how much each value varies.

    Raises InputError if ``a`` or ``b`` is not a run, or if their suites differ.
    """
    run_a, run_b = a.read_run(), b.read_run()
    if run_a.suite != run_b.suite:
        raise InputError(
            f"{b.path}: suite = {run_b.suite!r}: only runs of one suite can be compared; allowed: {run_a.suite!r}"
        )
    results_a, results_b = a.results(), b.results()
    suite = a.suite()
    incomparable = tuple(_differences(_option_texts(run_a, WARNED_OPTIONS), _option_texts(run_b, WARNED_OPTIONS)))
    ids = [row.id for row in suite.rows if row.id in {*run_a.rows, *run_b.rows}]
    same_size = run_a.size == run_b.size
    values = _changed_values(results_a, results_b, earlier_values) if same_size else {}
    facts = _changed_facts(results_a, results_b) if same_size else []
    rows = [_compare_row(row, results_a.get(row), results_b.get(row), values, same_size) for row in ids]
    changes = verdict_changes(evaluate_run(suite, a).best.verdicts, evaluate_run(suite, b).best.verdicts)
    return Comparison(
        before=run_a,
        after=run_b,
        names=_run_labels((a, run_a), (b, run_b)),
        incomparable=incomparable,
        differences=tuple(_differences(_comparable_values(run_a, results_a), _comparable_values(run_b, results_b))),
        packages=tuple(sorted({name for one in (*results_a.values(), *results_b.values()) for name in one.versions})),
        rows=tuple(rows),
        changed=tuple(_as_difference(one) for one in [*facts, *values.values()]),
        verdicts=tuple(sorted(changes, key=lambda change: -change.worsening)),
    )


def _changed_values(a: Results, b: Results, earlier_values: Sequence[MeasuredValues]) -> dict[ValueKey, RunChange]:
    """Return the measured values that changed by more than their noise, by row and quantity."""
    before, now = (values_of_rows(results) for results in (a, b))
    steps = {(row, name): deviation for row, one in a.items() for name, deviation in step_deviations(one).items()}
    changed = change_points([before, now], earlier_values, steps)
    return {key: value_change(key, before[key].value, now[key].value) for key, indices in changed.items() if indices}


def _changed_facts(a: Results, b: Results) -> list[RunChange]:
    """Return the facts about rows that changed. Settings are left out, because RowComparison contains them."""
    before, now = (
        {(row, name): value for row, one in results.items() for name, value in outcome_facts(one).items()}
        for results in (a, b)
    )
    return [one for one in differing_facts(before, now) if one.what not in Settings.model_fields]


def _as_difference(change: RunChange) -> Difference:
    before, now = change.values_in_words
    return Difference(what=f"{change.row}: {change.what}", before=before, after=now)


def _run_labels(*runs: tuple[RunFolder, Run]) -> tuple[str, str]:
    first, second = (f"{run.run_id}, {run.started_at[:16].replace('T', ' ')}" for _, run in runs)
    if first != second:
        return first, second
    (a, _), (b, _) = runs
    return f"{first} ({a.path})", f"{second} ({b.path})"


def _compare_row(
    row: str, a: Result | None, b: Result | None, changed: Mapping[ValueKey, RunChange], same_size: bool
) -> RowComparison:
    peak, reserved, speed = (
        _change_of_value(name, a, b, (row, name) in changed, same_size) for name in COMPARED_QUANTITIES
    )
    return RowComparison(
        row=row,
        outcome_before=a.outcome if a else None,
        outcome_after=b.outcome if b else None,
        ran_on_before=machine_in_words(a) if a else "",
        ran_on_after=machine_in_words(b) if b else "",
        same_experiment=a.fingerprint == b.fingerprint if a and b else None,
        settings=tuple(_differences(_row_settings(a.spec), _row_settings(b.spec))) if a and b else (),
        peak_gib=peak,
        reserved_gib=reserved,
        samples_per_s=speed,
    )


def _row_settings(spec: RowSpec) -> dict[str, str]:
    """Return the row's settings, without the options of the run, which the comparison lists separately."""
    plain: dict[str, Any] = spec.model_dump(mode="json", exclude=set(RUN_FIELDS))
    settings = plain.pop("settings")
    return {name: str(value) for name, value in {**plain, **settings}.items()}


def _change_of_value(quantity: Quantity, a: Result | None, b: Result | None, changed: bool, same_size: bool) -> Change:
    value_a, value_b = (value_of(quantity, result) if result else None for result in (a, b))
    ratio = value_b / value_a if same_size and value_a and value_b is not None else None
    return Change(before=value_a, after=value_b, ratio=ratio, changed=changed)


def _option_texts(run: Run, names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(getattr(run, name) or "") for name in names}


def _differences(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    for what in dict.fromkeys([*a, *b]):
        if a.get(what, "") != b.get(what, ""):
            yield Difference(what=what, before=a.get(what, ""), after=b.get(what, ""))


def _comparable_values(run: Run, results: Results) -> dict[str, str]:
    """Return the run's options and the machines and versions of its rows, by name."""
    facts = {
        name.replace("_", " "): value for name, value in _option_texts(run, (*SHOWN_OPTIONS, *ORIGIN_FIELDS)).items()
    }
    facts["git commit"] = facts["git commit"][:COMMIT_DIGITS]
    seen: dict[str, set[str]] = {}
    for result in results.values():
        seen.setdefault("device", set()).add(machine_in_words(result))
        for name, value in possible_causes(run, result).items():
            if name not in CAUSES_SHOWN_AS_OPTIONS:
                seen.setdefault(name, set()).add(value)
    return facts | {what: ", ".join(sorted(filter(None, values))) for what, values in seen.items()}
