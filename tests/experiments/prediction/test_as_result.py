"""Predictions evaluated like results, but only for statements about memory."""

from io import StringIO

import pytest
from rich.console import Console

from experiments.cli.tables.verdicts import verdict_table
from experiments.prediction.as_result import convert_to_result, describe_outcome, mismatch_warning, predicted_evaluation
from experiments.prediction.predict import suite_row_spec
from experiments.prediction.tables import prediction_as_data
from experiments.results.quantities import LOSS_QUANTITIES, QUANTITIES, TIME_QUANTITIES
from experiments.suites.suite import suite_named
from tests.support.results.handwritten import make_run
from tests.support.runners.fake_predictions import Predictor, prediction, stated

SUITE = suite_named("single_gpu_blip2")
CARD = "a100_80gb"


def spec(row: str):
    return suite_row_spec(SUITE, SUITE.row(row), CARD)


def evaluated(needs=stated):
    specs = [spec(row.id) for row in SUITE.rows_for(CARD)]
    evaluation = predicted_evaluation(SUITE, make_run(size="tiny"), Predictor(needs)(specs))
    return evaluation, {verdict.id: verdict for verdict in evaluation.verdicts}


def test_every_outcome_is_evaluated_at_full_size_also_for_a_miniature():
    evaluation, verdicts = evaluated()
    assert evaluation.run.size == "full"
    assert {verdict.grade for verdict in evaluation.verdicts} == {"predicted", None}
    assert {verdicts[f"{row.id}/outcome"].status for row in SUITE.rows_for(CARD)} == {"pass"}
    assert verdicts["claim/smaller-batch-fits"].status == "pass"


def test_a_table_of_predicted_verdicts_never_says_measured():
    console = Console(width=200, file=StringIO())
    console.print(verdict_table(evaluated()[0]))
    shown = console.file.getvalue()
    assert "predicted" in shown
    assert "measured" not in shown


def test_an_outcome_that_is_predicted_otherwise_does_not_hold_and_says_what_is_needed():
    _, verdicts = evaluated(lambda spec: 70.0)
    baseline = verdicts["baseline/outcome"]
    assert (baseline.status, baseline.value) == ("fail", "fits: needs 70.00 GiB of 78.60 GiB usable")
    assert baseline.reason == "fits: needs 70.00 GiB of 78.60 GiB usable"


def test_memory_of_a_row_that_does_not_fit_is_evaluated_too():
    _, verdicts = evaluated()
    assert verdicts["claim/params-near-14-gb"].status == "pass"
    assert verdicts["claim/params-near-14-gb"].value == "baseline: 14 GiB"


def test_times_and_losses_are_not_evaluated_and_the_reason_says_so():
    _, verdicts = evaluated()
    reasons = set()
    for claim in SUITE.claims:
        quantities = {check.quantity for check in claim.checks}
        if quantities & {*TIME_QUANTITIES, *LOSS_QUANTITIES}:
            verdict = verdicts[f"claim/{claim.id}"]
            assert verdict.status == "not evaluated"
            reasons.add(verdict.reason)
    assert reasons == {
        "times are not predicted",
        "the loss is not predicted",
    }


def test_a_predicted_result_is_no_measured_one():
    result = convert_to_result(prediction(spec("reduced-batch")))
    assert result.predicted
    assert result.device.name == "NVIDIA A100 80GB, predicted"
    assert not result.emulated
    assert (result.speed, result.losses) == (None, ())
    assert all(QUANTITIES[name](result) is None for name in (*TIME_QUANTITIES, *LOSS_QUANTITIES))


def test_the_reserve_is_that_under_the_cards_limit():
    result = convert_to_result(prediction(spec("reduced-batch"), 78.0, reserved_gib=85.0, limited_reserved_gib=78.5))
    assert QUANTITIES["reserved_gib"](result) == 78.5


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (60.0, "fits: needs 60.00 GiB of 78.60 GiB usable"),
        (78.0, "borderline, more likely fits: needs 78.00 GiB of 78.60 GiB usable"),
        (79.5, "borderline, more likely out of GPU memory: needs 79.50 GiB of 78.60 GiB usable"),
        (90.0, "out of GPU memory: needs 90.00 GiB of 78.60 GiB usable"),
    ],
)
def test_words_name_the_verdict_and_what_it_rests_on(needed, words):
    assert describe_outcome(prediction(spec("xxl"), needed)) == words


@pytest.mark.parametrize(
    ("needed", "expected", "warned"),
    [
        (60.0, "oom", "the lab states: out of GPU memory; predicted: fits: "),
        (90.0, "fits", "the lab states: fits; predicted: out of GPU memory: "),
        (79.0, "fits", "the lab states: fits; predicted: borderline, more likely out of GPU memory: "),
        (78.0, "oom", "the lab states: out of GPU memory; predicted: borderline, more likely fits: "),
        (60.0, "fits", ""),
        (90.0, "oom", ""),
        (60.0, None, ""),
    ],
)
def test_a_row_stated_otherwise_is_warned_of_and_no_other(needed, expected, warned):
    line = mismatch_warning(prediction(spec("xxl"), needed), expected)
    assert line.startswith(f"xxl: {warned}") if warned else line == ""


def test_the_keys_of_a_prediction_as_data_do_not_change():
    found = prediction_as_data(prediction(spec("baseline"), 70.0))
    assert set(found) == {
        *("suite", "row", "card", "model", "params", "trainable_params", "peak_gib", "reserved_gib", "needed_gib"),
        *("usable_gib", "margin_gib", "verdict", "expected", "agrees", "peak_phase", "peak_step", "at_peak"),
        *("optimizer_cpu_gib", "host_gib", "limited_reserved_gib", "retries", "failure", "rule_of_thumb_gib"),
        *("settings", "bf16_emulated"),
    }
    assert (found["verdict"], found["expected"], found["agrees"]) == ("fits", "oom", False)
