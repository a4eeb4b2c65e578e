"""The best verdict for each statement (measured, predicted, miniature); predictions that contradict measurements."""

from typing import Any

import pytest

from experiments.results.best_grade import combine_evidence
from experiments.results.verdicts import GRADES, Evaluation, Grade, Status, Verdict
from tests.support.results.in_memory import run


def evaluation(*verdicts: Verdict) -> Evaluation:
    return Evaluation(run=run(), verdicts=verdicts)


def verdict(status: Status, grade: Grade | None = None) -> Verdict:
    stated: dict[str, Any] = {"kind": "outcome", "says": "A fits.", "rows": ("a",), "expected": "fits"}
    return Verdict(id="a/outcome", status=status, grade=grade, value=grade or "", **stated)


def best_verdict(measured: Verdict, predicted: Verdict) -> Verdict:
    return combine_evidence(evaluation(measured), evaluation(predicted)).verdicts[0]


@pytest.mark.parametrize(
    ("grade", "chosen"),
    [("measured", "measured"), ("emulated", "emulated"), ("miniature", "predicted"), (None, "predicted")],
)
def test_a_predicted_verdict_counts_if_there_is_no_measured_one_at_full_size(grade: Grade | None, chosen: str) -> None:
    measured = verdict("pass" if grade else "not evaluated", grade)
    assert best_verdict(measured, verdict("pass", "predicted")).grade == chosen


def test_the_verdict_of_a_miniature_counts_if_the_prediction_has_none() -> None:
    assert best_verdict(verdict("pass", "miniature"), verdict("not evaluated")).grade == "miniature"


@pytest.mark.parametrize(("value", "reason"), [("2 s", "no GPU"), ("", "times are not predicted")])
def test_without_a_verdict_the_reason_is_that_of_the_measured_run(value: str, reason: str) -> None:
    measured = verdict("not evaluated").model_copy(update={"reason": "no GPU", "value": value})
    predicted = verdict("not evaluated").model_copy(update={"reason": "times are not predicted"})
    assert best_verdict(measured, predicted).reason == reason


def test_a_prediction_does_not_replace_an_error_of_the_run() -> None:
    found = combine_evidence(evaluation(verdict("error")), evaluation(verdict("pass", "predicted")))
    assert (found.count("error"), found.exit_code, found.contradictions) == (1, 3, ())


@pytest.mark.parametrize(("status", "code"), [("pass", 0), ("fail", 1)])
def test_the_exit_code_follows_from_the_verdicts_with_the_best_grades(status: Status, code: int) -> None:
    predicted = verdict("pass" if status == "fail" else "fail", "predicted")
    assert combine_evidence(evaluation(verdict(status, "measured")), evaluation(predicted)).exit_code == code
    assert (
        combine_evidence(evaluation(verdict("not evaluated")), evaluation(verdict(status, "predicted"))).exit_code
        == code
    )


@pytest.mark.parametrize("grade", ["measured", "emulated", "miniature"])
@pytest.mark.parametrize("status", ["pass", "fail"])
def test_a_prediction_that_contradicts_a_measurement_is_listed(grade: Grade, status: Status) -> None:
    other: Status = "fail" if status == "pass" else "pass"
    measured, predicted = verdict(status, grade), verdict(other, "predicted")
    (found,) = combine_evidence(evaluation(measured), evaluation(predicted)).contradictions
    assert (found.measured, found.predicted) == (measured, predicted)
    assert combine_evidence(evaluation(measured), evaluation(verdict(status, "predicted"))).contradictions == ()


def test_grades_of_verdicts_are_counted_and_listed_best_first() -> None:
    grades: tuple[Grade, ...] = ("miniature", "predicted", "predicted", "measured")
    found = evaluation(*(verdict("pass", grade) for grade in grades), verdict("fail", "emulated"))
    assert list(found.passed_by_grade().items()) == [("measured", 1), ("predicted", 2), ("miniature", 1)]
    assert GRADES == ("measured", "emulated", "predicted", "miniature")
