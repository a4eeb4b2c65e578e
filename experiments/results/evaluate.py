"""Evaluate results: a verdict on each outcome, reference value and claim, with its reason. Pure functions."""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from experiments.results.quantities import LOSSES, TIMES, value_of, values_of_ranks
from experiments.results.run_folder import Run
from experiments.results.schema import BROKEN, Record, Result
from experiments.results.wording import ENDINGS, label, number, span, unit
from experiments.suites.suite import Check, Claim, Figure, Quantity, Row, Suite

VERDICT_SCHEMA_VERSION: Literal[2] = 2
VERSION_1_STATUSES = {"held": "pass", "did not hold": "fail", "not judged": "not evaluated", "broke": "error"}

Status = Literal["pass", "fail", "not evaluated", "error"]
Basis = Literal["measured", "predicted"]


class Verdict(Record):
    """One statement with its status. reason: why it fails or was not evaluated, or the error; empty for a pass.

    measured is what it rests on; where the evaluation's basis are predicted, what was predicted.
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
    """verdict.json: every verdict of one run.

    basis: what the verdicts rest on. Reads schema version 1 too, which had other words for the same.
    """

    schema_version: Literal[2] = VERDICT_SCHEMA_VERSION
    run: Run
    verdicts: tuple[Verdict, ...]
    basis: Basis = "measured"

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        found = data.get("verdicts")
        verdicts = [_renamed(verdict) for verdict in found] if isinstance(found, list) else found
        kept = {key: value for key, value in data.items() if key != "grounds"}
        basis = data.get("grounds", "measured")
        return {**kept, "schema_version": VERDICT_SCHEMA_VERSION, "verdicts": verdicts, "basis": basis}

    def count(self, status: Status) -> int:
        return sum(verdict.status == status for verdict in self.verdicts)

    @property
    def exit_code(self) -> int:
        """Return 0 if all evaluated statements hold, 1 if one fails, 3 if one ended in an error."""
        return 3 if self.count("error") else 1 if self.count("fail") else 0


class Evidence(NamedTuple):
    """The results by row, and of rows that were scaled down why what is stated of them alone cannot be evaluated."""

    results: Mapping[str, Result]
    scaled: Mapping[str, str]


def _renamed(verdict: Any) -> Any:
    """Return a verdict of schema version 1 with its status in the words of today."""
    if not isinstance(verdict, dict):
        return verdict
    status = verdict.get("status")
    return {**verdict, "status": VERSION_1_STATUSES.get(str(status), status)}


def evaluate(suite: Suite, run: Run, results: Mapping[str, Result]) -> Evaluation:
    """Verdicts on every statement of ``suite`` that concerns the rows of ``run``.

    Results are either all measured or all predicted.
    """
    evidence = Evidence(results, {row: scaled_down(suite, result) for row, result in results.items()})
    verdicts = [verdict for row in run.rows for verdict in _row_verdicts(suite.row(row), evidence)]
    verdicts += [_claim_verdict(claim, evidence) for claim in suite.claims if set(claim_rows(claim)) & set(run.rows)]
    basis: Basis = "predicted" if any(result.predicted for result in results.values()) else "measured"
    return Evaluation(run=run, verdicts=tuple(verdicts), basis=basis)


def claim_rows(claim: Claim) -> tuple[str, ...]:
    """The rows that a claim speaks of, each once, in the order in which it names them."""
    names = [name for check in claim.checks for name in (check.row, check.over_row) if name]
    return tuple(dict.fromkeys(names))


def scaled_down(suite: Suite, result: Result) -> str:
    """Says how the row ran on fewer ranks than it states; empty where it did not."""
    stated = suite.settings(suite.row(result.spec.row), result.spec.card).world_size
    ran = result.spec.settings.world_size
    return "" if ran == stated else f"{ran} ranks run where the row states {stated}"


def _row_verdicts(row: Row, evidence: Evidence) -> Iterable[Verdict]:
    result = evidence.results.get(row.id)
    broken = result is not None and result.outcome in BROKEN
    if row.expect.outcome or broken:
        yield _outcome_verdict(row, evidence)
    for figure in row.expect.figures:
        yield _figure_verdict(row, figure, evidence)


def _outcome_verdict(row: Row, evidence: Evidence) -> Verdict:
    expected, result = row.expect.outcome, evidence.results.get(row.id)
    status, reason = _outcome_status(row.id, expected, evidence)
    return Verdict(
        id=f"{row.id}/outcome",
        kind="outcome",
        says=f"{row.title}: {ENDINGS[expected] if expected else 'no outcome is stated'}",
        rows=(row.id,),
        status=status,
        expected=ENDINGS[expected] if expected else "",
        measured=ENDINGS[result.outcome] if result else "",
        reason=reason,
    )


def _outcome_status(row: str, expected: str | None, evidence: Evidence) -> tuple[Status, str]:
    result = evidence.results.get(row)
    if result is None:
        return "not evaluated", "the row has not run"
    if result.outcome in BROKEN:
        return "error", result.reason
    if why := _why_no_outcome(result) or evidence.scaled[row]:
        return "not evaluated", why
    if result.outcome == expected:
        return "pass", ""
    return "fail", result.reason


def _why_no_outcome(result: Result) -> str:
    if result.outcome == "refused":
        return result.reason
    if result.spec.size == "tiny":
        return "a miniature says nothing of what fits the card"
    if result.device.kind != "cuda":
        return "no GPU"
    return ""


def _figure_verdict(row: Row, figure: Figure, evidence: Evidence) -> Verdict:
    low, high = figure.bounds
    check = Check(row=row.id, quantity=figure.quantity, low=low, high=high)
    status, measured, reason = _checked(check, evidence, full_size=True)
    return Verdict(
        id=f"{row.id}/{figure.quantity}",
        kind="figure",
        says=f"{row.title}: {label(figure.quantity)} {span(figure.low, figure.high)}",
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
    """Status, what was measured and the reason of one check."""
    results = evidence.results
    missing = [name for name in (check.row, check.over_row) if name and name not in results]
    if missing:
        return "not evaluated", "", f"{', '.join(missing)} has not run"
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
        _why_not_predicted(check, result)
        or _why_no_value(check, result, base, values, over)
        or _why_not_comparable(check, (result, base), full_size)
        or _why_scaled(check, evidence.scaled, all_ranks)
    )
    if not values or (check.relative and over is None):
        return "not evaluated", "", why
    compared = values if over is None else [_ratio(max(values), over)]
    text = _measured(check, values, over, compared)
    if why:
        return "not evaluated", text, why
    passes = all(_inside(check, value) for value in compared)
    return ("pass" if passes else "fail"), text, "" if passes else f"{text}, expected {_expected(check)}"


def _values(quantity: Quantity, result: Result) -> list[float]:
    """Memory of each rank; of all else the row's one value, where it has one."""
    if quantity not in (*TIMES, *LOSSES):
        return values_of_ranks(quantity, result)
    value = value_of(quantity, result)
    return [] if value is None else [value]


def _inside(check: Check, value: float) -> bool:
    return (check.low is None or value >= check.low) and (check.high is None or value <= check.high)


def _why_not_predicted(check: Check, result: Result) -> str:
    quantities = {check.quantity, check.over_quantity}
    if result.predicted and quantities & set(TIMES):
        return "a prediction of memory says nothing of times"
    if result.predicted and quantities & set(LOSSES):
        return "a prediction of memory says nothing of the loss"
    return ""


def _why_no_value(check: Check, result: Result, base: Result, values: list[float], over: float | None) -> str:
    if values and (over is not None or not check.relative):
        return ""
    lacking = base if values else result
    return f"{lacking.spec.row} has no {label(check.quantity or 'peak_gib')} ({lacking.reason})"


def _why_not_comparable(check: Check, pair: tuple[Result, Result], full_size: bool) -> str:
    """Why the values of a check may not be evaluated by the material's statement; empty when they may."""
    quantities = {check.quantity, check.over_quantity}
    for result in pair:
        if result.spec.size == "tiny" and (full_size or (not check.relative and check.high != 0)):
            return "a miniature says nothing of the real model's size"
        if result.device.kind != "cuda" and "optimizer_cpu_gib" in quantities:
            return "no GPU: all memory is host memory"
    for result in pair:
        if quantities & set(LOSSES):
            if result.spec.weights == "random" or result.spec.data == "synthetic":
                return "random weights or synthetic data say nothing of the loss"
            if result.spec.length != "as-taught":
                return "the loss is stated for the length of training as taught"
        if quantities & set(TIMES):
            if result.device.kind != "cuda":
                return "no GPU: times of a processor are not evaluated"
            if result.stands_in:
                return f"times on {result.device.name}, which stands in for {result.spec.card}, are not evaluated"
    return ""


def _why_scaled(check: Check, scaled: Mapping[str, str], all_ranks: bool) -> str:
    """Why rows on fewer ranks than they state say nothing of a check; what compares two values may be evaluated."""
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
