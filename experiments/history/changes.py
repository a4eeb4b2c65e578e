"""Find what changed since earlier runs: facts, verdicts, and measured values that changed beyond their noise."""

from itertools import pairwise
from typing import NamedTuple

from experiments.history.series import RecordedRun, Series
from experiments.results.changes.changed import RunChange, ValueKey, change_sentences, differing_facts, value_change
from experiments.results.changes.noise import change_points


class RunChanges(NamedTuple):
    """The changes between ``before`` and ``run``, the next run of the series.

    causes: what may explain the changes: versions, devices, code and data that differ. borderline: statements whose
    status flipped although no value of their rows changed by more than its noise.
    """

    run: RecordedRun
    before: RecordedRun
    changed: list[RunChange]
    borderline: list[RunChange]
    causes: list[RunChange]

    @property
    def sentences(self) -> list[str]:
        """Return a line for each change; the same change in many rows is one line."""
        return change_sentences(self.changed)


def run_changes(series: Series) -> list[RunChanges]:
    """Return the changes of each run in which something changed, oldest first.

    A run in which only borderline statements flipped is left out.
    """
    change_starts = change_points([run.measured for run in series.runs])
    all_changes = []
    for index, (before, run) in enumerate(pairwise(series.runs), 1):
        changed_values = [
            _changed_value(key, series, index) for key, indices in change_starts.items() if index in indices
        ]
        changed = [*differing_facts(before.facts, run.facts), *changed_values]
        flipped, borderline = _flipped_statements(before, run, {change.row for change in changed})
        if flipped or changed:
            all_changes.append(RunChanges(run, before, [*flipped, *changed], borderline, _causes(before, run)))
    return all_changes


def _flipped_statements(
    before: RecordedRun, run: RecordedRun, rows: set[str]
) -> tuple[list[RunChange], list[RunChange]]:
    """Return the flipped statements as two lists: those whose flip is more than noise, and borderline ones.

    A flip is more than noise if the statement's bounds changed, if the statement is about one of the changed ``rows``,
    or if both verdicts are predicted, because predictions have no noise.
    """
    flipped: list[RunChange] = []
    borderline: list[RunChange] = []
    for id_, now in run.verdicts.items():
        then = before.verdicts.get(id_)
        if then and then.status != now.status:
            predicted = then.grade == now.grade == "predicted"
            is_explained = predicted or then.expected != now.expected or rows & set(now.rows)
            (flipped if is_explained else borderline).append(RunChange("", now.says, then.status, now.status))
    return flipped, borderline


def _causes(before: RecordedRun, run: RecordedRun) -> list[RunChange]:
    """Return the possible causes that differ between the runs, such as versions; each once, not once for each row."""
    return list(dict.fromkeys(cause._replace(row="") for cause in differing_facts(before.causes, run.causes)))


def _changed_value(key: ValueKey, series: Series, run_index: int) -> RunChange:
    earlier = [value for value in series.values(key)[:run_index] if value is not None]
    return value_change(key, earlier[-1], series.runs[run_index].measured[key].value)
