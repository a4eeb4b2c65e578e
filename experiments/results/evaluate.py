"""Evaluate results against expectations: one verdict per outcome, reference value and claim. Pure functions."""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from experiments.results.quantities import LOSSES, TIMES, value_of, values_of_ranks
from experiments.results.run_folder import Run
from experiments.results.schema import BROKEN, Record, Result
from experiments.results.wording import ENDINGS, label, number, span, unit
from experiments.suites.suite import Check, Claim, Quantity, ReferenceValue, Row, Suite

VERDICT_SCHEMA_VERSION: Literal[2] = 2

Status = Literal["pass", "fail", "not evaluated", "error"]
Basis = Literal["measured", "predicted"]
STATUSES_OF_VERSION_1 = {"held": "pass", "did not hold": "fail", "not judged": "not evaluated", "broke": "error"}


class Verdict(Record):
    """The verdict on one statement.

    reason states why it failed or was not evaluated; empty for a pass. measured is the value that the verdict rests
    on: a prediction where the basis of the evaluation is predicted.
    """

    id: str
    kind: Literal["outcome", "figure", "claim"]
    says: str
    rows: tuple[str, ...]
    status: Status
    expected: str
    measured: str
    reason: str = ""


class Evaluation(Record):
    """verdict.json: every verdict of one run. Version 1, with other words for the statuses, is read too."""

    schema_version: Literal[2] = VERDICT_SCHEMA_VERSION
    run: Run
    verdicts: tuple[Verdict, ...]
    basis: Basis = "measured"

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        verdicts = [
            {**verdict, "status": STATUSES_OF_VERSION_1.get(verdict["status"], verdict["status"])}
            for verdict in data["verdicts"]
        ]
        rest = {key: value for key, value in data.items() if key not in ("grounds", "verdicts")}
        return {**rest, "schema_version": 2, "basis": data.get("grounds", "measured"), "verdicts": verdicts}

    def count(self, status: Status) -> int:
        """Return how many verdicts have this status."""
        return sum(verdict.status == status for verdict in self.verdicts)

    @property
    def exit_code(self) -> int:
        """Return 0 if nothing failed, 1 if a statement failed, 3 if a row ended with an error."""
        return 3 if self.count("error") else 1 if self.count("fail") else 0


class Evidence(NamedTuple):
    """Results by row, and for each row how it was scaled down ("" for a row with all its ranks)."""

    results: Mapping[str, Result]
    scaled: Mapping[str, str]


def evaluate(suite: Suite, run: Run, results: Mapping[str, Result]) -> Evaluation:
    """Evaluate every statement of ``suite`` about the rows of ``run``.

    Results are either all measured or all predicted.
    """
    evidence = Evidence(results, {row: scaled_down(suite, result) for row, result in results.items()})
    verdicts = [verdict for row in run.rows for verdict in _row_verdicts(suite.row(row), evidence)]
    verdicts += [_claim_verdict(claim, evidence) for claim in suite.claims if set(claim_rows(claim)) & set(run.rows)]
    basis: Basis = "predicted" if any(result.predicted for result in results.values()) else "measured"
    return Evaluation(run=run, verdicts=tuple(verdicts), basis=basis)


def claim_rows(claim: Claim) -> tuple[str, ...]:
    """Return the rows that a claim compares, each once, in the claim's order."""
    names = [name for check in claim.checks for name in (check.row, check.over_row) if name]
    return tuple(dict.fromkeys(names))


def scaled_down(suite: Suite, result: Result) -> str:
    """Return how many ranks ran if the row states more; otherwise an empty string."""
    stated = suite.settings(suite.row(result.spec.row), result.spec.card).world_size
    ran = result.spec.settings.world_size
    return "" if ran == stated else f"the row ran with {ran} of its {stated} ranks"


def _row_verdicts(row: Row, evidence: Evidence) -> Iterable[Verdict]:
    result = evidence.results.get(row.id)
    broken = result is not None and result.outcome in BROKEN
    if row.expect.outcome or broken:
        yield _outcome_verdict(row, evidence)
    for reference in row.expect.figures:
        yield _reference_verdict(row, reference, evidence)


def _outcome_verdict(row: Row, evidence: Evidence) -> Verdict:
    expected, result = row.expect.outcome, evidence.results.get(row.id)
    status, reason = _outcome_status(row.id, expected, evidence)
    return Verdict(
        id=f"{row.id}/outcome",
        kind="outcome",
        says=f"{row.title}: {ENDINGS[expected] if expected else 'no expected outcome'}",
        rows=(row.id,),
        status=status,
        expected=ENDINGS[expected] if expected else "",
        measured=ENDINGS[result.outcome] if result else "",
        reason=reason,
    )


def _outcome_status(row: str, expected: str | None, evidence: Evidence) -> tuple[Status, str]:
    result = evidence.results.get(row)
    if result is None:
        return "not evaluated", "the row was not run"
    if result.outcome in BROKEN:
        return "error", result.reason
    if why := _outcome_unknown(result) or evidence.scaled[row]:
        return "not evaluated", why
    if result.outcome == expected:
        return "pass", ""
    return "fail", result.reason


def _outcome_unknown(result: Result) -> str:
    """Return why the outcome cannot be compared with the lab's; empty if it can."""
    if result.outcome == "refused":
        return result.reason
    if result.spec.size == "tiny":
        return "a miniature does not show what fits the card"
    if result.device.kind != "cuda":
        return "no GPU"
    return ""


def _reference_verdict(row: Row, reference: ReferenceValue, evidence: Evidence) -> Verdict:
    low, high = reference.bounds
    check = Check(row=row.id, quantity=reference.quantity, low=low, high=high)
    status, measured, reason = _checked(check, evidence, full_size=True)
    return Verdict(
        id=f"{row.id}/{reference.quantity}",
        kind="figure",
        says=f"{row.title}: {label(reference.quantity)} {span(reference.low, reference.high)}",
        rows=(row.id,),
        status=status,
        expected=span(low, high),
        measured=measured,
        reason=reason,
    )


def _claim_verdict(claim: Claim, evidence: Evidence) -> Verdict:
    checked = [_checked(check, evidence, claim.full_size, claim.all_ranks) for check in claim.checks]
    statuses = [status for status, _, _ in checked]
    status: Status = next((worst for worst in ("fail", "not evaluated") if worst in statuses), "pass")
    return Verdict(
        id=f"claim/{claim.id}",
        kind="claim",
        says=claim.says,
        rows=claim_rows(claim),
        status=status,
        expected="; ".join(_expected(check) for check in claim.checks),
        measured="; ".join(measured for _, measured, _ in checked if measured),
        reason="; ".join(dict.fromkeys(reason for own, _, reason in checked if own == status and reason)),
    )


def _checked(check: Check, evidence: Evidence, full_size: bool, all_ranks: bool = False) -> tuple[Status, str, str]:
    """Return status, measured value and reason of one check."""
    results = evidence.results
    missing = [name for name in (check.row, check.over_row) if name and name not in results]
    if missing:
        return "not evaluated", "", f"{', '.join(missing)}: not run"
    result = results[check.row]
    if check.outcome:
        status, reason = _outcome_status(check.row, check.outcome, evidence)
        measured = f"{check.row}: {ENDINGS[result.outcome]}"
        return ("not evaluated" if status == "error" else status), measured, reason
    assert check.quantity is not None
    base = results[check.over_row] if check.over_row else result
    values = _values(check.quantity, result)
    over = value_of(check.over_quantity or check.quantity, base) if check.relative else None
    why = (
        _outside_prediction(check, result)
        or _value_missing(check, result, base, values, over)
        or _not_comparable(check, (result, base), full_size)
        or _too_few_ranks(check, evidence.scaled, all_ranks)
    )
    if not values or (check.relative and over is None):
        return "not evaluated", "", why
    compared = values if over is None else [_ratio(max(values), over)]
    text = _measured(check, values, over, compared)
    if why:
        return "not evaluated", text, why
    if all(_inside(check, value) for value in compared):
        return "pass", text, ""
    return "fail", text, f"{text}, expected {_expected(check)}"


def _values(quantity: Quantity, result: Result) -> list[float]:
    """Return the memory of each rank; for other quantities the row's only value, if it has one."""
    if quantity not in (*TIMES, *LOSSES):
        return values_of_ranks(quantity, result)
    value = value_of(quantity, result)
    return [] if value is None else [value]


def _inside(check: Check, value: float) -> bool:
    return (check.low is None or value >= check.low) and (check.high is None or value <= check.high)


def _outside_prediction(check: Check, result: Result) -> str:
    """Return why a prediction has no such value; empty if it has, or if the result was measured."""
    quantities = {check.quantity, check.over_quantity}
    if result.predicted and quantities & set(TIMES):
        return "predictions cover memory, not times"
    if result.predicted and quantities & set(LOSSES):
        return "predictions cover memory, not losses"
    return ""


def _value_missing(check: Check, result: Result, base: Result, values: list[float], over: float | None) -> str:
    """Return which row lacks the value and why; empty if none does."""
    if values and (over is not None or not check.relative):
        return ""
    lacking = base if values else result
    return f"{lacking.spec.row} has no {label(check.quantity or 'peak_gib')} ({lacking.reason})"


def _not_comparable(check: Check, pair: tuple[Result, Result], full_size: bool) -> str:
    """Return why measured values cannot be compared with the lab's; empty if they can."""
    quantities = {check.quantity, check.over_quantity}
    for result in pair:
        if result.spec.size == "tiny" and (full_size or (not check.relative and check.high != 0)):
            return "a miniature does not have the real model's size"
        if result.device.kind != "cuda" and "optimizer_cpu_gib" in quantities:
            return "no GPU: all memory is host memory"
    for result in pair:
        if quantities & set(LOSSES):
            if result.spec.weights == "random" or result.spec.data == "synthetic":
                return "random weights or synthetic data: the loss means nothing"
            if result.spec.length != "as-taught":
                return "the loss is stated for the full length of the lab"
        if quantities & set(TIMES):
            if result.device.kind != "cuda":
                return "no GPU: times on a CPU are not evaluated"
            if result.stands_in:
                return f"times on {result.device.name}, which emulates {result.spec.card}, are not evaluated"
    return ""


def _too_few_ranks(check: Check, scaled: Mapping[str, str], all_ranks: bool) -> str:
    """Return how a row of the check was scaled down; empty if it was not, or if the check compares two values."""
    if check.relative and not all_ranks:
        return ""
    return next(filter(None, (scaled[row] for row in (check.row, check.over_row) if row)), "")


def _ratio(value: float, over: float) -> float:
    if over == 0:
        return inf if value > 0 else 1.0
    return value / over


def _measured(check: Check, values: list[float], over: float | None, compared: list[float]) -> str:
    assert check.quantity is not None
    if over is None:
        range_ = " to ".join(dict.fromkeys(map(number, (min(values), max(values)))))
        ranks = f" over {len(values)} ranks" if len(values) > 1 else ""
        return f"{check.row}: {range_} {unit(check.quantity)}".rstrip() + ranks
    other = check.over_row or label(check.over_quantity or check.quantity)
    pair = f"{number(max(values))} against {number(over)} {unit(check.quantity)}".rstrip()
    return f"{number(compared[0])} times {other} ({pair})"


def _expected(check: Check) -> str:
    if check.outcome:
        return f"{check.row}: {ENDINGS[check.outcome]}"
    assert check.quantity is not None
    bounds = span(check.low, check.high)
    what = f"{label(check.quantity)} of {check.row}"
    if not check.relative:
        return f"{what} {bounds} {unit(check.quantity)}".rstrip()
    return (
        f"{what} {bounds} times that of {check.over_row}"
        if check.over_row
        else f"{what} {bounds} times its {label(check.over_quantity or '')}"
    )
