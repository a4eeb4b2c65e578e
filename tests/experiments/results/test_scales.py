"""Statements about smaller twins of a lab's rows: ratios and outcomes apply, the lab's own numbers do not."""

from typing import Any

import pytest

from experiments.report.words import headline
from experiments.results.evaluate import evaluate
from experiments.results.verdicts import Verdict
from experiments.suites.suite import Scale
from tests.support.results.in_memory import CARD, result, run, suite

SMALL = "h100_1g_12gb"
SIZES = {"a": {"batch_size": 1}, "b": {"batch_size": 1}}


def verdict_on(
    checks: list[dict[str, Any]], twins: dict[str, dict[str, Any]] = SIZES, card: str = SMALL, outcome: str = "fits"
) -> Verdict:
    """Return the verdict on a claim with these checks, about rows a and b that ran as ``twins`` on ``card``."""
    return evaluation(checks, twins, card, outcome).verdicts[-1]


def evaluation(checks, twins=SIZES, card=SMALL, outcome="fits", taught=2):
    rows = [
        {"id": row, "settings": {"batch_size": size}, "expect": {"outcome": outcome}}
        for row, size in (("a", 2), ("b", taught))
    ]
    lab = suite(rows, [{"id": "claim", "says": "So.", "checks": checks}])
    lab = lab.model_copy(update={"scales": (Scale(scale="12gb", cards=(SMALL,), rows=twins),)})
    results = {
        row.id: result(row.id, outcome, card=card, settings=lab.settings(row, card), memory={"peak_gib": 5.0})
        for row in lab.rows
    }
    return evaluate(lab, run("a", "b", card=card), results)


PEAK = {"row": "a", "quantity": "peak_gib", "high": 10.0}
RATIO = {"row": "a", "quantity": "peak_gib", "over_row": "b", "high": 2.0}


def test_a_number_that_the_lab_states_is_not_evaluated_for_the_smaller_twin_of_a_row():
    verdict = verdict_on([PEAK])
    assert (verdict.status, verdict.reason) == (
        "not evaluated",
        "scaled to 12 GB: the lab states this number for its own sizes",
    )
    assert verdict_on([PEAK], card=CARD).status == verdict_on([PEAK], twins={"b": SIZES["b"]}).status == "pass"


def test_a_statement_that_a_value_is_zero_is_evaluated_for_the_smaller_twin_of_a_row():
    assert verdict_on([{**PEAK, "high": 0.0}]).status == "fail"


def test_a_statement_on_the_used_share_of_the_card_is_evaluated_for_the_smaller_twin_of_a_row():
    lab_bound = {"row": "a", "quantity": "peak_share", "high": 0.7}
    assert verdict_on([lab_bound]).status == "pass"


def test_a_reference_value_is_not_evaluated_for_the_smaller_twin_of_a_row():
    value = {"quantity": "peak_gib", "low": 4.0, "high": 6.0, "source": "made up"}
    lab = suite([{"id": "a", "expect": {"outcome": "fits", "reference_values": [value]}}])
    lab = lab.model_copy(update={"scales": (Scale(scale="12gb", cards=(SMALL,), rows={"a": SIZES["a"]}),)})
    results = {"a": result("a", card=SMALL, settings=lab.settings(lab.row("a"), SMALL), memory={"peak_gib": 5.0})}
    outcome, reference = evaluate(lab, run("a", card=SMALL), results).verdicts
    assert outcome.status == "pass"
    assert (reference.status, reference.reason[:15]) == ("not evaluated", "scaled to 12 GB")


def test_a_comparison_of_two_rows_is_evaluated_for_their_smaller_twins():
    assert verdict_on([RATIO]).status == "pass"


@pytest.mark.parametrize(
    "checks", [[RATIO], [{"row": row, "outcome": "fits"} for row in ("a", "b")]], ids=["ratio", "outcomes"]
)
def test_a_comparison_is_not_evaluated_if_two_smaller_twins_differ_in_more_settings_than_their_rows(checks):
    verdict = verdict_on(checks, twins={"a": {"batch_size": 1}})
    assert verdict.status == "not evaluated"
    assert verdict.reason == "scaled to 12 GB: a and b differ in batch_size, unlike in the lab"


def test_the_headline_says_that_the_run_is_scaled():
    assert headline(evaluation([RATIO])).startswith("Scaled to 12 GB: All 3 statements pass")
    assert headline(evaluation([RATIO], card=CARD)).startswith("All 3 statements pass")
    assert headline(evaluation([RATIO], twins={"a": {"batch_size": 2}})).startswith("1 of 2 rows scaled to 12 GB: ")


def test_a_comparison_is_evaluated_if_smaller_twins_differ_only_in_settings_in_which_their_rows_differ():
    assert evaluation([RATIO], twins={"a": {"batch_size": 1}}, taught=4).verdicts[-1].status == "pass"
