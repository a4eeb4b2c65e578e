"""Evaluate results in memory with suites of one or two rows."""

from experiments.results.evaluate import evaluate
from tests.support.results.in_memory import run, suite

PEAK = {"peak_gib": 10.0}
REFERENCE = {"quantity": "reserved_gib", "low": 70.0, "high": 80.0, "tolerance": 0.05, "source": "made up"}
RATIO = {"row": "a", "quantity": "peak_gib", "over_row": "b", "low": 0.5, "high": 2.0}


def last_verdict(results, rows, claims=None, asked=("a", "b")):
    """Return the last verdict on a suite of ``rows`` with these ``results``: if there is a claim, its verdict."""
    return evaluate(suite(rows, claims), run(*asked), {one.spec.row: one for one in results}).verdicts[-1]


def outcome_verdict(expected, got):
    return last_verdict([got] if got else [], rows=[{"id": "a", "expect": {"outcome": expected}}], asked=("a",))


def reference_verdict(got, **changes):
    rows = [{"id": "a", "expect": {"reference_values": [REFERENCE | changes]}}]
    return last_verdict([got] if got else [], rows=rows, asked=("a",))


def claim_verdict(check, *results, rows=({"id": "a"}, {"id": "b"}), **fields):
    checks = check if isinstance(check, list) else [check]
    return last_verdict(results, list(rows), [{"id": "says-so", "says": "It is so.", "checks": checks, **fields}])
