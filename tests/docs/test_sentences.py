"""The pages that list the sentences of each lab: every sentence has its statements and their best stored evidence."""

import pytest

from docs.generate import sentence_pages
from docs.sentence_tables import best_verdicts, sentence_rows, stored_evaluations
from experiments.results.verdicts import Evaluation, Verdict
from experiments.suites.sentences import sentences_of
from experiments.suites.suite import suite_named, suite_names
from tests.support.results.in_memory import run

SUITES = [suite_named(name) for name in suite_names()]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.suite)
def test_the_table_shows_each_sentence_with_its_statements(suite) -> None:
    rows = list(sentence_rows(suite))
    assert [row[0] for row in rows if row[0]] == [sentence.says for sentence in sentences_of(suite)]
    statements = [statement for sentence in sentences_of(suite) for statement in sentence.statements]
    assert [row[2] for row in rows] == [f"`{statement}`" for statement in statements]
    assert all(row[3] in ("pass", "fail", "not evaluated") and row[5] for row in rows)
    assert all(bool(row[4]) == (row[3] != "not evaluated") for row in rows)
    page = sentence_pages()[f"reference/sentences/{suite.suite}.md"]
    assert page.count("\n| ") == len(rows) + 2


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.suite)
def test_every_statement_of_the_table_is_in_a_stored_run(suite) -> None:
    assert {evaluation.run.suite for _, evaluation in stored_evaluations(suite)} == {suite.suite}
    assert not [row for row in sentence_rows(suite) if row[5] == "no stored run evaluates it"]


def evaluation(**verdict: str) -> Evaluation:
    stated = {"id": "a", "kind": "outcome", "says": "", "rows": (), "expected": ""}
    return Evaluation(run=run(), verdicts=(Verdict.model_validate(stated | verdict),))


def test_the_verdict_with_the_best_grade_is_shown_and_the_first_card_wins_a_tie() -> None:
    predicted = evaluation(status="fail", grade="predicted", value="90 GiB")
    emulated = evaluation(status="pass", grade="emulated", value="80 GiB")
    card, best = best_verdicts([("x", predicted), ("y", emulated), ("z", emulated)])["a"]
    assert (card, best.grade, best.value) == ("y", "emulated", "80 GiB")


def test_without_a_verdict_the_reason_comes_from_a_run_that_measured_a_value() -> None:
    empty = evaluation(status="not evaluated", value="", reason="a has not run")
    slow = evaluation(status="not evaluated", value="7 s", reason="seconds of another card")
    assert best_verdicts([("x", empty), ("x", slow)])["a"][1].reason == "seconds of another card"
