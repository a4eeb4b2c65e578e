"""Evaluate results: give each outcome, reference value and claim a verdict with its reason. Pure functions."""

from collections.abc import Iterable, Mapping
from math import hypot, inf
from typing import NamedTuple

from experiments.results.obstacles import (
    Evidence,
    ResultPair,
    StatementConditions,
    check_obstacles,
    missing_value_obstacles,
    outcome_obstacles,
    twin_size_obstacles,
)
from experiments.results.quantities import (
    ESTIMATED_QUANTITIES,
    GPU_SHARES,
    LOSS_QUANTITIES,
    ROW_QUANTITIES,
    is_lower_bound,
    value_of,
    values_of_ranks,
)
from experiments.results.run_folder import Run
from experiments.results.schema import ERROR_OUTCOMES, Result
from experiments.results.verdicts import GRADES, NOT_RUN, Evaluation, Grade, Status, Verdict
from experiments.results.wording import (
    OUTCOME_NAMES,
    choose_memory_unit,
    format_bounds,
    format_number,
    quantity_label,
    quantity_unit,
)
from experiments.suites.suite import Check, Claim, Quantity, ReferenceValue, Row, Suite


class CheckResult(NamedTuple):
    """The result of one check of a statement: its status, the compared value, and a reason unless it passes.

    missed: by how much the value is outside of its bounds, for a check that fails; else "".
    """

    status: Status
    value: str
    reason: str = ""
    missed: str = ""


def evaluate(suite: Suite, run: Run, results: Mapping[str, Result]) -> Evaluation:
    """Return a verdict on every statement of ``suite`` about the rows of ``run``.

    ``results`` are either all measured or all predicted.
    """
    evidence = Evidence.from_results(suite, results)
    verdicts = [verdict for row in run.rows for verdict in _row_verdicts(suite.row(row), evidence)]
    verdicts += [_claim_verdict(claim, evidence) for claim in suite.claims if set(claim_rows(claim)) & set(run.rows)]
    return Evaluation(run=run, verdicts=tuple(verdicts), scale=suite.note_on_scaled_rows(run.rows, run.card))


def evaluate_row(suite: Suite, result: Result) -> tuple[Verdict, ...]:
    """Return the verdicts on the outcome and the reference values that ``suite`` states for the row of ``result``."""
    row = suite.row(result.spec.row)
    evidence = Evidence.from_results(suite, {row.id: result})
    return tuple(_row_verdicts(row, evidence))


def claim_rows(claim: Claim) -> tuple[str, ...]:
    """Return the rows that a claim is about, each once, in the order of its checks."""
    names = [name for check in claim.checks for name in (check.row, check.over_row) if name]
    return tuple(dict.fromkeys(names))


def grade_of(result: Result) -> Grade:
    """Return how the result was obtained: measured, emulated, predicted or miniature."""
    if result.predicted:
        return "predicted"
    if result.spec.size == "tiny":
        return "miniature"
    return "emulated" if result.emulated else "measured"


def _worst_grade(status: Status, rows: Iterable[str], evidence: Evidence) -> Grade | None:
    """Return the worst grade among the results of ``rows``; None unless the status is pass or fail."""
    if status not in ("pass", "fail"):
        return None
    return max((grade_of(evidence.results[row]) for row in rows if row in evidence.results), key=GRADES.index)


def _row_verdicts(row: Row, evidence: Evidence) -> Iterable[Verdict]:
    result = evidence.results.get(row.id)
    if row.expect.outcome or (result is not None and result.outcome in ERROR_OUTCOMES):
        yield _outcome_verdict(row, evidence)
    for reference in row.expect.reference_values:
        yield _reference_verdict(row, reference, evidence)


def _outcome_verdict(row: Row, evidence: Evidence) -> Verdict:
    expected = row.expect.outcome
    status, reason = _outcome_status(row.id, expected, evidence)
    return Verdict(
        id=f"{row.id}/outcome",
        kind="outcome",
        says=f"{row.title}: {OUTCOME_NAMES[expected] if expected else 'no outcome is stated'}",
        rows=(row.id,),
        status=status,
        grade=_worst_grade(status, (row.id,), evidence),
        expected=OUTCOME_NAMES[expected] if expected else "",
        value=_outcome_text(evidence.results.get(row.id)),
        reason=reason,
    )


def _outcome_text(result: Result | None) -> str:
    """Return the outcome as text; for a prediction, with the needed memory and whether it is borderline."""
    if result is None:
        return ""
    return result.reason if result.predicted else OUTCOME_NAMES[result.outcome]


def _outcome_status(row: str, expected: str | None, evidence: Evidence) -> tuple[Status, str]:
    """Return the status of a stated outcome, and the reason."""
    result = evidence.results.get(row)
    if result is None:
        return "not evaluated", f"the row {NOT_RUN}"
    if result.outcome in ERROR_OUTCOMES:
        return "error", result.reason
    if obstacle := next(outcome_obstacles(result, evidence), None):
        return "not evaluated", obstacle
    if result.outcome == expected:
        return "pass", ""
    return "fail", result.reason


def _reference_verdict(row: Row, reference: ReferenceValue, evidence: Evidence) -> Verdict:
    check = reference.as_check(row.id)
    expected = f"{format_bounds(check.low, check.high)} {quantity_unit(reference.quantity)}".rstrip()
    check_result = _evaluate_check(check, evidence, StatementConditions(needs_full_size=True))
    return Verdict(
        id=f"{row.id}/{reference.quantity}",
        kind="reference value",
        says=f"{row.title}: {quantity_label(reference.quantity)} {expected}",
        rows=(row.id,),
        status=check_result.status,
        grade=_worst_grade(check_result.status, (row.id,), evidence),
        expected=expected,
        value=check_result.value,
        missed=check_result.missed,
        **_reason_fields(check_result.status, check_result.reason, reference.known_failure),
    )


def _claim_verdict(claim: Claim, evidence: Evidence) -> Verdict:
    rows = claim_rows(claim)
    tiny = any(evidence.results[row].spec.size == "tiny" for row in rows if row in evidence.results)
    checks = [check.for_tiny_models() if tiny else check for check in claim.checks]
    check_results = [
        _evaluate_check(check, evidence, StatementConditions(claim.full_size, claim.all_ranks)) for check in checks
    ]
    outcome_rows = tuple(dict.fromkeys(check.row for check in checks if check.outcome))
    check_results += [
        CheckResult("not evaluated", "", reason) for reason in twin_size_obstacles(outcome_rows, evidence)
    ]
    statuses = [one.status for one in check_results]
    status: Status = next((worst for worst in ("fail", "not evaluated") if worst in statuses), "pass")
    reasons = dict.fromkeys(one.reason for one in check_results if one.status == status)
    return Verdict(
        id=claim.verdict_id,
        kind="claim",
        says=claim.says,
        rows=rows,
        status=status,
        grade=_worst_grade(status, rows, evidence),
        expected="; ".join(_expected_text(check) for check in checks),
        value="; ".join(one.value for one in check_results if one.value),
        missed="; ".join(one.missed for one in check_results if one.missed),
        **_reason_fields(status, "; ".join(reason for reason in reasons if reason), claim.known_failure),
    )


def _reason_fields(status: Status, reason: str, known_failure: str) -> dict[str, str]:
    """Return the reason of a verdict, with the cause of a failure that the suite knows."""
    if status != "fail" or not known_failure:
        return {"reason": reason}
    return {"reason": f"{reason}; known cause: {known_failure}", "known_failure": known_failure}


def _evaluate_check(check: Check, evidence: Evidence, conditions: StatementConditions) -> CheckResult:
    missing = [name for name in (check.row, check.over_row) if name and name not in evidence.results]
    if missing:
        return CheckResult("not evaluated", "", f"{', '.join(missing)} {NOT_RUN}")
    if check.outcome:
        status, reason = _outcome_status(check.row, check.outcome, evidence)
        if status == "pass" and check.phase:
            status, reason = _phase_status(check.phase, evidence.results[check.row])
        value = f"{check.row}: {_outcome_text(evidence.results[check.row])}"
        return CheckResult("not evaluated" if status == "error" else status, value, reason)
    for row in filter(None, (check.row, check.over_row)):
        if evidence.results[row].outcome in ERROR_OUTCOMES:
            return CheckResult("not evaluated", "", f"{row} has no results ({evidence.results[row].reason})")
    return _evaluate_quantity(check, evidence, conditions)


def _phase_status(phase: str, result: Result) -> tuple[Status, str]:
    """Return the status of the statement that memory ran out in ``phase``, and the reason unless it passes."""
    if result.failure is None:
        return "not evaluated", f"the phase in which {result.spec.row} ran out of memory is not known"
    return ("pass", "") if result.failure.phase == phase else ("fail", result.reason)


def _evaluate_quantity(check: Check, evidence: Evidence, conditions: StatementConditions) -> CheckResult:
    assert check.quantity is not None
    result = evidence.results[check.row]
    base = evidence.results[check.over_row] if check.over_row else result
    values = _values_to_check(check.quantity, result)
    divisor = value_of(check.over_quantity or check.quantity, base) if check.is_relative else None
    known = bool(values) and (divisor is not None or not check.is_relative)
    if not known:
        result_without_value = base if values else result
        no_value = (
            f"{result_without_value.spec.row} has no {quantity_label(check.quantity)} ({result_without_value.reason})"
        )
        return CheckResult("not evaluated", "", next(missing_value_obstacles(check, (result, base)), no_value))
    compared = values if divisor is None else [_ratio(max(values), divisor)]
    text = _describe_values(check, values, divisor, compared) + _loss_note(check, result)
    if obstacle := next(check_obstacles(check, evidence, conditions), None):
        return CheckResult("not evaluated", text, obstacle)
    if lower_bound_problem := _lower_bound_obstacle(check, (result, base), compared):
        return CheckResult("not evaluated", text, lower_bound_problem)
    if too_close := _prediction_error_obstacle(check, (result, base), compared):
        return CheckResult("not evaluated", text, f"too close to call: {text}, {too_close}")
    if all(check.accepts(value) for value in compared):
        return CheckResult("pass", text)
    reason = f"{text}, expected {_bounds_text(check)}"
    return CheckResult("fail", text, reason, _distance_to_bound(check, compared))


def _distance_to_bound(check: Check, compared: list[float]) -> str:
    """Return how far the worst of the values is out of bounds: '8 % below 69.6 GiB', '0.2 GiB above 0 GiB'.

    compared: the values that the check compares with its bounds. Empty if no distance can be stated.
    """
    assert check.quantity is not None
    if check.outside:
        return ""
    what = "times" if check.is_relative else quantity_unit(check.quantity)
    bounds = ((check.low, min(compared), "below"), (check.high, max(compared), "above"))
    for bound, value, side in bounds:
        if bound is None or (value >= bound if side == "below" else value <= bound):
            continue
        size = abs(value - bound)
        if size == inf:
            return ""
        far = f"{format_number(100 * size / bound)} %" if bound else f"{format_number(size)} {what}".rstrip()
        return f"{far} {side} {format_number(bound)} {what}".rstrip()
    return ""


def _values_to_check(quantity: Quantity, result: Result) -> list[float]:
    """Return the values of the ranks for a quantity of memory, else the row's single value; empty if unknown."""
    if quantity not in ROW_QUANTITIES:
        return values_of_ranks(quantity, result)
    value = value_of(quantity, result)
    return [] if value is None else [value]


def _lower_bound_obstacle(check: Check, pair: ResultPair, compared: list[float]) -> str:
    """Return why a check cannot be decided because a row ran out of memory; "" if it can be decided.

    compared: the values, or their ratios, that the check compares with its bounds. The memory of a row that ran out of
    memory is only a lower bound of its need. If this memory is the divisor, the ratio is only an upper bound.
    """
    assert check.quantity is not None
    result, base = pair
    is_lower = is_lower_bound(check.quantity, result)
    is_upper = check.over_row is not None and is_lower_bound(check.over_quantity or check.quantity, base)
    if not is_lower and not is_upper:
        return ""
    low, high = (-inf if check.low is None else check.low), (inf if check.high is None else check.high)
    fails = max(compared) > high if is_lower else min(compared) < low
    passes = all(map(check.accepts, (*compared, inf if is_lower else 0.0)))
    if is_lower != is_upper and (fails or passes):
        return ""
    return f"{(result if is_lower else base).spec.row} ran out of memory: the row needs more memory than was measured"


def _prediction_error_obstacle(check: Check, pair: ResultPair, compared: list[float]) -> str:
    """Return 'with a prediction error of 5 %' if this error leaves the check undecided; else "".

    compared: the values, or their ratios, that the check compares with its bounds.
    """
    speeds = [one.speed for one in pair if one.predicted and one.speed]
    if check.quantity not in ESTIMATED_QUANTITIES or not speeds:
        return ""
    if check.quantity in GPU_SHARES:
        errors = [GPU_SHARES[check.quantity] * speed.idle_error for speed in speeds]
        ranges = _ranges_of_shares(check, pair, compared, errors)
        text = " and ".join(dict.fromkeys(map(format_number, errors)))
    else:
        errors = [speed.ratio_error_share for speed in speeds] if check.over_row else [speeds[0].error_share]
        share = hypot(*errors)
        ranges, text = [(value * (1 - share), value * (1 + share)) for value in compared], f"{100 * share:.0f} %"
    bounds = [bound for bound in (check.low, check.high) if bound is not None]
    undecided = any(least < bound < most for least, most in ranges for bound in bounds)
    return f"with a prediction error of {text}" if undecided else ""


def _ranges_of_shares(
    check: Check, pair: ResultPair, compared: list[float], errors: list[float]
) -> list[tuple[float, float]]:
    """Return the range of a share of GPU time, or of its ratio to the share of another row, within the error."""
    if check.over_row is None:
        return [(value - errors[0], value + errors[0]) for value in compared]
    assert check.quantity is not None
    value, divisor = (value_of(check.quantity, one) or 0.0 for one in pair)
    least = _ratio(max(value - errors[0], 0.0), divisor + errors[-1])
    return [(least, _ratio(value + errors[0], max(divisor - errors[-1], 0.0)))]


def _ratio(value: float, divisor: float) -> float:
    if divisor == 0:
        return inf if value > 0 else 1.0
    return value / divisor


def _describe_values(check: Check, values: list[float], divisor: float | None, compared: list[float]) -> str:
    """Return the values of a row: 'xxl: gradients 144 MiB', 'a: peak memory 3 times b's (30 vs. 10 GiB)'."""
    assert check.quantity is not None
    subject = f"{check.row}: {quantity_label(check.quantity)}"
    if divisor is None:
        (low, high), unit = _values_in_best_unit(quantity_unit(check.quantity), min(values), max(values))
        range_ = " to ".join(dict.fromkeys(map(format_number, (low, high))))
        ranks = f" over {len(values)} ranks" if len(values) > 1 else ""
        return f"{subject} {range_} {unit}{ranks}" if unit else f"{subject} = {range_}{ranks}"
    base = check.over_quantity or check.quantity
    if quantity_unit(check.quantity) == quantity_unit(base):
        (value, divisor), base_unit = _values_in_best_unit(quantity_unit(base), max(values), divisor)
        value_unit = ""
    else:
        ((value,), value_unit), ((divisor,), base_unit) = (
            _values_in_best_unit(quantity_unit(check.quantity), max(values)),
            _values_in_best_unit(quantity_unit(base), divisor),
        )
    numerator = f"{format_number(value)} {value_unit or base_unit}".rstrip()
    denominator = f"{format_number(divisor)} {base_unit}".rstrip()
    if compared[0] == inf:
        return f"{subject} {numerator}, and {_name_of_base(check)} {denominator}"
    pair = f"{numerator if value_unit else format_number(value)} vs. {denominator}"
    return f"{subject} {format_number(compared[0])} times {_name_of_base(check)} ({pair})"


def _name_of_base(check: Check) -> str:
    """Return what a check divides by: 'baseline's', 'its parameters', 'the parameters of baseline'."""
    if check.over_quantity in (None, check.quantity):
        return f"{check.over_row}'s"
    quantity = quantity_label(check.over_quantity or "")
    return f"the {quantity} of {check.over_row}" if check.over_row else f"its {quantity}"


def _values_in_best_unit(unit: str, *values: float) -> tuple[tuple[float, ...], str]:
    """Return the values and their unit. Values in GiB are converted to the unit that suits the largest of them."""
    if unit != "GiB":
        return values, unit
    best_unit, per_gib = choose_memory_unit(max(map(abs, values)))
    return tuple(value * per_gib for value in values), best_unit


def _loss_note(check: Check, result: Result) -> str:
    """Return a note on random weights and synthetic data for a loss; "" for other quantities, or if neither applies."""
    if check.quantity not in LOSS_QUANTITIES:
        return ""
    differences = [
        words
        for words, is_so in (
            ("random weights", result.spec.weights == "random"),
            ("synthetic data", result.spec.data == "synthetic"),
        )
        if is_so
    ]
    return f", with {' and '.join(differences)}" if differences else ""


def _expected_text(check: Check) -> str:
    if check.outcome:
        phase = f" in the {check.phase} phase" if check.phase else ""
        return f"{check.row}: {OUTCOME_NAMES[check.outcome]}{phase}"
    assert check.quantity is not None
    of_base = f" {_name_of_base(check)}" if check.is_relative else ""
    return f"{check.row}: {quantity_label(check.quantity)} {_bounds_text(check)}{of_base}"


def _bounds_text(check: Check) -> str:
    """Return the bounds of a value or ratio: 'at most 0.25 GiB', 'at least 2 times', '= 1'."""
    assert check.quantity is not None
    bounds = ("outside " if check.outside else "") + format_bounds(check.low, check.high)
    unit = "times" if check.is_relative else quantity_unit(check.quantity)
    return f"{bounds} {unit}" if unit else f"= {bounds}" if bounds[0].isdigit() else bounds
