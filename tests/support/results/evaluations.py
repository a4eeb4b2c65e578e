"""The verdicts of a suite of two rows, a and b, on results in memory."""

from experiments.results.evaluate import evaluate
from tests.support.results.in_memory import run, suite

PEAK = {"peak_gib": 10.0}
REFERENCE = {"quantity": "reserved_gib", "low": 70.0, "high": 80.0, "tolerance": 0.05, "source": "made up"}
RATIO = {"row": "a", "quantity": "peak_gib", "over_row": "b", "low": 0.5, "high": 2.0}


def evaluated(results, rows, claims=None, asked=("a", "b")):
    """The last verdict on the statements about ``results``: that on the claim, where there is one."""
    return evaluate(suite(rows, claims), run(*asked), {one.spec.row: one for one in results}).verdicts[-1]


def outcome_of(expected, got):
    return evaluated([got] if got else [], rows=[{"id": "a", "expect": {"outcome": expected}}], asked=("a",))


def reference_of(got, **changes):
    rows = [{"id": "a", "expect": {"reference_values": [REFERENCE | changes]}}]
    return evaluated([got] if got else [], rows=rows, asked=("a",))


def claim_of(check, *results, rows=({"id": "a"}, {"id": "b"}), **about):
    checks = check if isinstance(check, list) else [check]
    return evaluated(results, list(rows), [{"id": "says-so", "says": "It is so.", "checks": checks, **about}])
