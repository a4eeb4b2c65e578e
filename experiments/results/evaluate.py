"""Evaluate results: a verdict on each outcome, reference value and claim, with its reason. Pure functions."""

from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from experiments.results.quantities import LOSSES, TIMES, value_of, values_of_ranks
from experiments.results.run_folder import Run
from experiments.results.schema import ERRORS, Record, Result
from experiments.results.wording import OUTCOMES, label, number, span, unit
from experiments.suites.suite import Check, Claim, Quantity, ReferenceValue, Row, Suite

VERDICT_SCHEMA_VERSION: Literal[2] = 2
VERSION_1_KINDS = {"figure": "reference value"}
VERSION_1_STATUSES = {"held": "pass", "did not hold": "fail", "not judged": "not evaluated", "broke": "error"}

Status = Literal["pass", "fail", "not evaluated", "error"]
Basis = Literal["measured", "predicted"]


class Verdict(Record):
    """One statement with its status."""

    id: str = Field(description="id of the claim, or of the row and its quantity")
    kind: Literal["outcome", "reference value", "claim"] = Field(description="what is stated")
    says: str = Field(description="the statement in a sentence")
    rows: tuple[str, ...] = Field(description="ids of the rows that it is about")
    status: Status = Field(description="whether the statement holds")
    expected: str = Field(description="values that pass")
    measured: str = Field(description="values that were measured, or predicted where that is the basis")
    reason: str = Field(default="", description="why it fails or was not evaluated, or the error; empty for a pass")


class Evaluation(Record):
    """verdict.json: every verdict of one run. Reads schema version 1 too, which had other words for the same."""

    schema_version: Literal[2] = Field(default=VERDICT_SCHEMA_VERSION, description="version of this schema")
    run: Run = Field(description="options and origin of the run")
    verdicts: tuple[Verdict, ...] = Field(description="one a statement")
    basis: Basis = Field(default="measured", description="what the verdicts rest on")

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


def _renamed(verdict: Any) -> Any:
    """Return a verdict of schema version 1 in the words of today."""
    if not isinstance(verdict, dict):
        return verdict
    status, kind = verdict.get("status"), verdict.get("kind")
    renamed = {"status": VERSION_1_STATUSES.get(str(status), status), "kind": VERSION_1_KINDS.get(str(kind), kind)}
    return {**verdict, **renamed}


class Evidence(NamedTuple):
    """The results by row. scaled: by row, how it ran on fewer ranks than it states; empty if it did not."""

    results: Mapping[str, Result]
    scaled: Mapping[str, str]


class CheckResult(NamedTuple):
    """What one check of a statement found."""

    status: Status
    measured: str
    reason: str = ""


def evaluate(suite: Suite, run: Run, results: Mapping[str, Result]) -> Evaluation:
    """Return a verdict on every statement of ``suite`` about the rows of ``run``.

    ``results`` are either all measured or all predicted.
    """
    evidence = Evidence(results, {row: scaled_down(suite, result) for row, result in results.items()})
    verdicts = [verdict for row in run.rows for verdict in _row_verdicts(suite.row(row), evidence)]
    verdicts += [_claim_verdict(claim, evidence) for claim in suite.claims if set(claim_rows(claim)) & set(run.rows)]
    basis: Basis = "predicted" if any(result.predicted for result in results.values()) else "measured"
    return Evaluation(run=run, verdicts=tuple(verdicts), basis=basis)


def claim_rows(claim: Claim) -> tuple[str, ...]:
    """Return the rows that a claim is about, each once, in the order of its checks."""
    names = [name for check in claim.checks for name in (check.row, check.over_row) if name]
    return tuple(dict.fromkeys(names))


def scaled_down(suite: Suite, result: Result) -> str:
    """Return how the row ran on fewer ranks than it states; empty if it did not."""
    stated = suite.settings(suite.row(result.spec.row), result.spec.card).world_size
    ran = result.spec.settings.world_size
    return "" if ran == stated else f"ran on {ran} of the {stated} ranks that the row states"


def _row_verdicts(row: Row, evidence: Evidence) -> Iterable[Verdict]:
    result = evidence.results.get(row.id)
    if row.expect.outcome or (result is not None and result.outcome in ERRORS):
        yield _outcome_verdict(row, evidence)
    for reference in row.expect.reference_values:
        yield _reference_verdict(row, reference, evidence)


def _outcome_verdict(row: Row, evidence: Evidence) -> Verdict:
    expected, result = row.expect.outcome, evidence.results.get(row.id)
    status, reason = _outcome_status(row.id, expected, evidence)
    return Verdict(
        id=f"{row.id}/outcome",
        kind="outcome",
        says=f"{row.title}: {OUTCOMES[expected] if expected else 'no outcome is stated'}",
        rows=(row.id,),
        status=status,
        expected=OUTCOMES[expected] if expected else "",
        measured=OUTCOMES[result.outcome] if result else "",
        reason=reason,
    )


def _outcome_status(row: str, expected: str | None, evidence: Evidence) -> tuple[Status, str]:
    """Return the status of a stated outcome, and the reason."""
    result = evidence.results.get(row)
    if result is None:
        return "not evaluated", "the row has not run"
    if result.outcome in ERRORS:
        return "error", result.reason
    if obstacle := next(_outcome_obstacles(result, evidence), None):
        return "not evaluated", obstacle
    if result.outcome == expected:
        return "pass", ""
    return "fail", result.reason


def _outcome_obstacles(result: Result, evidence: Evidence) -> Iterator[str]:
    """Yield each reason why the outcome of a row that ran does not count."""
    if result.outcome == "refused":
        yield result.reason
    if result.spec.size == "tiny":
        yield "a tiny model does not show what fits the card"
    if result.device.kind != "cuda":
        yield "no GPU"
    if scaled := evidence.scaled[result.spec.row]:
        yield scaled


def _reference_verdict(row: Row, reference: ReferenceValue, evidence: Evidence) -> Verdict:
    check = reference.check_of(row.id)
    found = _check(check, evidence, full_size=True)
    return Verdict(
        id=f"{row.id}/{reference.quantity}",
        kind="reference value",
        says=f"{row.title}: {label(reference.quantity)} {span(reference.low, reference.high)}",
        rows=(row.id,),
        status=found.status,
        expected=span(check.low, check.high),
        measured=found.measured,
        reason=found.reason,
    )


def _claim_verdict(claim: Claim, evidence: Evidence) -> Verdict:
    found = [_check(check, evidence, claim.full_size, claim.all_ranks) for check in claim.checks]
    statuses = [one.status for one in found]
    status: Status = next((worst for worst in ("fail", "not evaluated") if worst in statuses), "pass")
    return Verdict(
        id=f"claim/{claim.id}",
        kind="claim",
        says=claim.says,
        rows=claim_rows(claim),
        status=status,
        expected="; ".join(_expected(check) for check in claim.checks),
        measured="; ".join(one.measured for one in found if one.measured),
        reason="; ".join(dict.fromkeys(one.reason for one in found if one.status == status and one.reason)),
    )


def _check(check: Check, evidence: Evidence, full_size: bool, all_ranks: bool = False) -> CheckResult:
    """Evaluate one check. full_size, all_ranks: as a claim says of itself."""
    missing = [name for name in (check.row, check.over_row) if name and name not in evidence.results]
    if missing:
        return CheckResult("not evaluated", "", f"{', '.join(missing)} has not run")
    if check.outcome:
        status, reason = _outcome_status(check.row, check.outcome, evidence)
        measured = f"{check.row}: {OUTCOMES[evidence.results[check.row].outcome]}"
        return CheckResult("not evaluated" if status == "error" else status, measured, reason)
    return _check_quantity(check, evidence, full_size, all_ranks)


def _check_quantity(check: Check, evidence: Evidence, full_size: bool, all_ranks: bool) -> CheckResult:
    assert check.quantity is not None
    result = evidence.results[check.row]
    base = evidence.results[check.over_row] if check.over_row else result
    values = _values(check.quantity, result)
    over = value_of(check.over_quantity or check.quantity, base) if check.relative else None
    known = bool(values) and (over is not None or not check.relative)
    if not known:
        lacking = base if values else result
        no_value = f"{lacking.spec.row} has no {label(check.quantity)} ({lacking.reason})"
        return CheckResult("not evaluated", "", next(_prediction_obstacles(check, result), no_value))
    compared = values if over is None else [_ratio(max(values), over)]
    measured = _measured(check, values, over, compared)
    if obstacle := next(_obstacles(check, (result, base), evidence, full_size, all_ranks), None):
        return CheckResult("not evaluated", measured, obstacle)
    if all(_inside(check, value) for value in compared):
        return CheckResult("pass", measured)
    return CheckResult("fail", measured, f"{measured}, expected {_expected(check)}")


def _values(quantity: Quantity, result: Result) -> list[float]:
    """Return the memory of each rank, or the row's one value of any other quantity; empty if it is unknown."""
    if quantity not in (*TIMES, *LOSSES):
        return values_of_ranks(quantity, result)
    value = value_of(quantity, result)
    return [] if value is None else [value]


def _inside(check: Check, value: float) -> bool:
    return (check.low is None or value >= check.low) and (check.high is None or value <= check.high)


def _obstacles(
    check: Check, pair: tuple[Result, Result], evidence: Evidence, full_size: bool, all_ranks: bool
) -> Iterator[str]:
    """Yield each reason why the values of ``pair`` do not count for a check."""
    yield from _prediction_obstacles(check, pair[0])
    yield from _size_obstacles(check, pair, full_size)
    yield from _loss_and_time_obstacles(check, pair)
    yield from _scaling_obstacles(check, evidence.scaled, all_ranks)


def _prediction_obstacles(check: Check, result: Result) -> Iterator[str]:
    """Yield why a prediction cannot evaluate a check."""
    quantities = {check.quantity, check.over_quantity}
    if result.predicted and quantities & set(TIMES):
        yield "times are not predicted"
    if result.predicted and quantities & set(LOSSES):
        yield "the loss is not predicted"


def _size_obstacles(check: Check, pair: tuple[Result, Result], full_size: bool) -> Iterator[str]:
    """Yield why the size of the model or of the device's memory does not allow a check."""
    for result in pair:
        if result.spec.size == "tiny" and (full_size or (not check.relative and check.high != 0)):
            yield "a tiny model does not show the size of the real one"
        if result.device.kind != "cuda" and "optimizer_cpu_gib" in (check.quantity, check.over_quantity):
            yield "no GPU: all memory is host memory"


def _loss_and_time_obstacles(check: Check, pair: tuple[Result, Result]) -> Iterator[str]:
    """Yield why losses or times of this run are not those that the lab states."""
    quantities = {check.quantity, check.over_quantity}
    for result in pair:
        if quantities & set(LOSSES):
            if result.spec.weights == "random" or result.spec.data == "synthetic":
                yield "random weights or synthetic data give no comparable loss"
            if result.spec.length != "as-taught":
                yield "the loss is stated for the full length of the training"
        if quantities & set(TIMES):
            if result.device.kind != "cuda":
                yield "no GPU: times on a CPU are not evaluated"
            elif result.emulated:
                yield f"times on {result.device.name}, which emulates {result.spec.card}, are not evaluated"


def _scaling_obstacles(check: Check, scaled: Mapping[str, str], all_ranks: bool) -> Iterator[str]:
    """Yield why rows on fewer ranks than they state do not allow a check; a comparison of two values is allowed."""
    if all_ranks or not check.relative:
        yield from (scaled[row] for row in (check.row, check.over_row) if row and scaled[row])


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
    pair = f"{number(max(values))} vs. {number(over)} {unit(check.quantity)}".rstrip()
    return f"{number(compared[0])} times {other} ({pair})"


def _expected(check: Check) -> str:
    if check.outcome:
        return f"{check.row}: {OUTCOMES[check.outcome]}"
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
