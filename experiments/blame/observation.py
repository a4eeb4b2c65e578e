"""Observations of rows in an environment (outcomes, values, statements), and differences between two observations."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import AliasChoices, Field

from experiments.results.changes.changed import value_change
from experiments.results.changes.facts import MeasuredValue, measured_values
from experiments.results.changes.noise import change_points
from experiments.results.quantities import ABSOLUTE_TIME_QUANTITIES
from experiments.results.schema import Record, Result
from experiments.results.verdicts import Evaluation
from experiments.results.wording import format_number, quantity_unit


class Observation(Record):
    """What was observed in one environment: outcomes, reasons and measured values by row, statuses by statement.

    reasons: why a row did not fit; rows that fit have none.
    """

    outcomes: dict[str, str]
    reasons: dict[str, str]
    measured: dict[str, dict[str, float]] = Field(validation_alias=AliasChoices("measured", "figures"))
    statuses: dict[str, str]


class Difference(NamedTuple):
    """One difference between the good and the bad environment, and the observations in both.

    key: by kind: for a value, the row and the quantity; for an outcome, the row and "outcome"; for a statement, its id
    and "status".
    """

    kind: Literal["statement", "outcome", "value"]
    key: tuple[str, str]
    good: Observation
    bad: Observation

    @property
    def sentence(self) -> str:
        """Return the difference as one line."""
        row, what = self.key
        if self.kind == "value":
            return value_change(self.key, *(one.measured[row][what] for one in (self.good, self.bad))).sentence
        reason = self.bad.reasons.get(row) or self.good.reasons.get(row, "")
        return f"{row}: {what} {self.value(self.good)} → {self.value(self.bad)}{reason and f' ({reason})'}"

    def value(self, observation: Observation) -> str:
        """Return the status, outcome or value that differs, as ``observation`` has it, in words."""
        row, what = self.key
        if self.kind == "value":
            found = observation.measured.get(row, {}).get(what)
            return (
                observation.reasons.get(row, "no value")
                if found is None
                else f"{format_number(found)} {quantity_unit(what)}".strip()
            )
        return (
            observation.statuses.get(row, "none") if self.kind == "statement" else observation.outcomes.get(row, "none")
        )

    def side(self, observation: Observation) -> Literal["good", "bad"] | None:
        """Return the environment, good or bad, that has the same result as ``observation``; None: neither.

        For a value, return the environment with the nearer value; None if a value is missing.
        """
        row, what = self.key
        if self.kind == "value":
            good, bad, found = (end.measured.get(row, {}).get(what) for end in (self.good, self.bad, observation))
            if found is None or good is None or bad is None:
                return None
            return "good" if abs(found - good) < abs(found - bad) else "bad"
        if self._comparison_key(observation) == self._comparison_key(self.good):
            return "good"
        return "bad" if self._comparison_key(observation) == self._comparison_key(self.bad) else None

    def _comparison_key(self, observation: Observation) -> tuple[str, str]:
        """Return the key by which observations are compared: equal keys mean the same result.

        The key is the status or outcome, and for an outcome also its reason without numbers, because a different error
        is a different result.
        """
        reason = observation.reasons.get(self.key[0], "") if self.kind == "outcome" else ""
        return self.value(observation), re.sub(r"\d+", "", reason)


def observation_of(
    results: Mapping[str, Result], evaluation: Evaluation, errors: Mapping[str, str] = {}
) -> Observation:
    """Return the observation of rows with ``results``. Times that were measured on a CPU are left out.

    errors: error messages of the rows that have no result.
    """
    return Observation(
        outcomes={**{row: result.outcome for row, result in results.items()}, **dict.fromkeys(errors, "error")},
        reasons={row: result.reason for row, result in results.items() if result.outcome != "fits"} | dict(errors),
        measured={row: _compared_values(result) for row, result in results.items()},
        statuses={one.id: one.status for one in evaluation.verdicts},
    )


def rejection_of(rows: Sequence[str], reason: str) -> Observation:
    """Return the observation of rows that cannot run with this software."""
    return Observation(
        outcomes=dict.fromkeys(rows, "rejected"), reasons=dict.fromkeys(rows, reason), measured={}, statuses={}
    )


def find_difference(good: Observation, bad: Observation, statement: str | None) -> Difference | None:
    """Return the first difference: the status of ``statement``, an outcome, or a value; None if there is none.

    statement: id of a statement, or ROW/QUANTITY, the only value to compare; None: all values are compared.
    """
    if statement and good.statuses.get(statement) != bad.statuses.get(statement):
        return Difference("statement", (statement, "status"), good, bad)
    for row in good.outcomes.keys() & bad.outcomes.keys():
        if good.outcomes[row] != bad.outcomes[row]:
            return Difference("outcome", (row, "outcome"), good, bad)
    before, now = (
        {(row, name): MeasuredValue(value, None) for row, name, value in _measured_values(one)} for one in (good, bad)
    )
    points = change_points([before, now])
    changed = [key for key, starts in points.items() if starts and (not statement or f"{key[0]}/{key[1]}" == statement)]
    return Difference("value", changed[0], good, bad) if changed else None


def _measured_values(observation: Observation) -> list[tuple[str, str, float]]:
    return [(row, name, value) for row, found in observation.measured.items() for name, value in found.items()]


def _compared_values(result: Result) -> dict[str, float]:
    measured = measured_values(result)
    left_out = ABSOLUTE_TIME_QUANTITIES if result.device.kind == "cpu" else ()
    return {name: one.value for name, one in measured.items() if name not in left_out}
