"""The sentences at the head of a report."""

import pytest

from experiments.report.words import gib, headline, ran_on, remarks, setting_sentence, share
from experiments.results.evaluate import Evaluation, Verdict
from experiments.suites.suite import suite_named
from tests.support.reports import A100, H200, PROCESSOR, STAND_IN, make_result, make_run


def evaluation(**counts: int) -> Evaluation:
    statuses = [status.replace("_", " ") for status, count in counts.items() for _ in range(count)]
    verdicts = [
        Verdict(id=str(n), kind="claim", says="", rows=(), status=status, expected="", measured="")
        for n, status in enumerate(statuses)
    ]
    return Evaluation(run=make_run(), verdicts=tuple(verdicts))


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, "Nothing is stated about these rows, so there is nothing to evaluate."),
        (
            {"pass": 14, "fail": 2, "not_evaluated": 9},
            "14 of 16 evaluated statements hold; 2 fail; 9 were not evaluated.",
        ),
        ({"pass": 3}, "All 3 evaluated statements hold."),
        ({"pass": 1, "not_evaluated": 1}, "The one evaluated statement holds; 1 was not evaluated."),
        ({"fail": 1}, "The one evaluated statement fails."),
        ({"fail": 2}, "All 2 evaluated statements fail."),
        ({"not_evaluated": 5}, "None of the 5 statements was evaluated."),
        ({"not_evaluated": 5, "error": 1}, "None of the 6 statements was evaluated; 1 ended in an error."),
        ({"error": 2}, "2 ended in an error."),
        ({"pass": 2, "error": 1}, "All 2 evaluated statements hold; 1 ended in an error."),
    ],
)
def test_headline(counts: dict[str, int], sentence: str) -> None:
    assert headline(evaluation(**counts)) == sentence


def test_a_stand_in_is_named_as_one() -> None:
    assert ran_on(make_result(make_run(), "baseline", device=H200)) == STAND_IN


def test_a_stand_in_without_a_cap_is_named_too() -> None:
    device = H200.model_copy(update={"cap_gib": None, "count": 4})
    assert ran_on(make_result(make_run(), "baseline", device=device)) == "4 x NVIDIA H200, emulating a100_80gb"


def test_the_card_itself_stands_in_for_nothing() -> None:
    assert ran_on(make_result(make_run(), "baseline", device=A100)) == "NVIDIA A100 80GB PCIe"


def test_a_miniature_is_named_as_one() -> None:
    run = make_run(size="tiny")
    result = make_result(run, "baseline", device=PROCESSOR)
    assert ran_on(result) == "a processor (AMD EPYC 7763), in miniature"
    assert "This is a miniature on a processor (AMD EPYC 7763)" in setting_sentence(run, {"baseline": result})


def test_remarks_follow_from_the_choices() -> None:
    run = make_run(rows=("baseline", "xxl"), input="with-image", recipe_version=99)
    suite = suite_named(run.suite)
    text = " ".join(remarks(run, suite, evaluation(), {"baseline": make_result(run, "baseline")}))
    assert "1 of 2 rows has no result." in text
    assert "stand-in's own" in text
    assert "The loss is not evaluated." in text
    assert "version 99" in text
    assert "given the image" in text


def test_a_faithful_run_needs_no_remarks() -> None:
    run = make_run(rows=("baseline",), length="as-taught", weights="pretrained", data="/data/captions")
    results = {"baseline": make_result(run, "baseline", device=A100)}
    assert remarks(run, suite_named(run.suite), evaluation(**{"pass": 1}), results) == ()


def test_a_run_of_tiny_models_says_what_it_can_evaluate() -> None:
    run = make_run(size="tiny", rows=("baseline",))
    results = {"baseline": make_result(run, "baseline", device=PROCESSOR)}
    text = remarks(run, suite_named(run.suite), evaluation(**{"pass": 2, "not_evaluated": 3}), results)[0]
    assert "compare rows with one another" in text
    assert "here 2 of 5" in text


def test_numbers() -> None:
    assert [gib(78.6), gib(0.012345)] == ["78.60 GiB", "0.0123 GiB"]
    assert [share(0.4567), share(0.0213)] == ["46 %", "2.1 %"]
