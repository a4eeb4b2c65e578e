"""Predictions are evaluated like results, but only for statements about memory and times."""

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
from tests.support.runners.fake_predictions import Predictor, prediction, stated, step_time

SUITE = suite_named("single_gpu_blip2")
CARD = "a100_80gb"


def spec(row: str):
    return suite_row_spec(SUITE, SUITE.row(row), CARD)


def evaluation_of(needs=stated):
    specs = [spec(row.id) for row in SUITE.rows_for(CARD)]
    evaluation = predicted_evaluation(SUITE, make_run(size="tiny"), Predictor(needs)(specs))
    return evaluation, {verdict.id: verdict for verdict in evaluation.verdicts}


def test_the_predictions_of_a_tiny_run_are_evaluated_at_full_size():
    evaluation, verdicts = evaluation_of()
    assert evaluation.run.size == "full"
    assert {verdict.grade for verdict in evaluation.verdicts} == {"predicted", None}
    assert {verdicts[f"{row.id}/outcome"].status for row in SUITE.rows_for(CARD)} == {"pass"}
    assert verdicts["claim/smaller-batch-fits"].status == "pass"


def test_the_word_measured_is_not_in_a_table_of_predicted_verdicts():
    text = StringIO()
    Console(width=200, file=text).print(verdict_table(evaluation_of()[0]))
    shown = text.getvalue()
    assert "predicted" in shown
    assert "measured" not in shown


def test_a_predicted_outcome_that_differs_from_the_lab_s_fails_and_shows_the_needed_memory():
    _, verdicts = evaluation_of(lambda spec: 70.0)
    baseline = verdicts["baseline/outcome"]
    assert (baseline.status, baseline.value) == ("fail", "fits: needs 70.00 GiB of 78.60 GiB usable")
    assert baseline.reason == "fits: needs 70.00 GiB of 78.60 GiB usable"


def test_a_statement_on_memory_is_evaluated_even_if_the_row_is_predicted_not_to_fit():
    _, verdicts = evaluation_of()
    assert verdicts["claim/params-near-14-gb"].status == "pass"
    assert verdicts["claim/params-near-14-gb"].value == "baseline: parameters 14 GiB"


def verdict_on_speed(reduced_s: float, full_s: float, error_share: float = 0.2):
    rows = {"reduced-precision": reduced_s, "grad-accumulation": full_s}
    found = [prediction(spec(row), 60.0, time=step_time(step_s, error_share)) for row, step_s in rows.items()]
    evaluation = predicted_evaluation(SUITE, make_run(size="tiny"), found)
    return {verdict.id: verdict for verdict in evaluation.verdicts}["claim/bf16-is-much-faster"]


def test_losses_are_not_predicted_and_times_only_with_a_step_time():
    _, verdicts = evaluation_of()
    reasons = set()
    for claim in SUITE.claims:
        quantities = {check.quantity for check in claim.checks}
        if quantities & {*TIME_QUANTITIES, *LOSS_QUANTITIES}:
            verdict = verdicts[f"claim/{claim.id}"]
            assert verdict.status == "not evaluated"
            reasons.add(verdict.reason)
    assert reasons == {"the time is not predicted", "the loss is not predicted"}


def test_a_ratio_of_predicted_times_is_evaluated():
    faster, slower = verdict_on_speed(0.5, 3.0), verdict_on_speed(3.0, 3.0)
    assert (faster.status, faster.grade) == ("pass", "predicted")
    assert "6 times" in faster.value
    assert slower.status == "fail"


def test_a_predicted_time_near_the_bound_is_too_close_to_call():
    close = verdict_on_speed(1.4, 3.0)
    assert (close.status, close.grade) == ("not evaluated", None)
    assert close.reason.startswith("too close to call: ")
    assert close.reason.endswith("with a prediction error of 28 %")
    assert verdict_on_speed(1.4, 3.0, error_share=0.02).status == "pass"


def test_a_predicted_step_time_gives_the_speed_and_the_load_of_the_gpus():
    result = convert_to_result(prediction(spec("grad-accumulation"), 60.0, time=step_time(2.0)))
    assert QUANTITIES["samples_per_s"](result) == 64 / 2.0
    assert QUANTITIES["gpu_idle_share"](result) == pytest.approx(0.1)
    assert QUANTITIES["gpu_util_percent"](result) == pytest.approx(90)
    assert QUANTITIES["gpu_processes"](result) == 1
    assert QUANTITIES["train_s"](result) == 2.0 * 62 / 4


@pytest.mark.parametrize(
    ("step_s", "error", "status"),
    # the lab states 180 to 244 s for 400 steps
    [
        (0.5, 0.02, "pass"),
        (0.3, 0.02, "fail"),
        (0.3, 0.3, "fail"),
        (0.3, 0.6, "not evaluated"),
        (0.3, 2.0, "not evaluated"),
    ],
)
def test_seconds_are_evaluated_unless_a_bound_is_within_their_error(step_s, error, status):
    suite = suite_named("multi_gpu_litgpt")
    row = suite_row_spec(suite, suite.row("7b-1gpu"), CARD)
    time = step_time(step_s).model_copy(update={"error_share": error, "planned_micro_steps": 400})
    run = make_run(suite="multi_gpu_litgpt", rows=("7b-1gpu",))
    evaluation = predicted_evaluation(suite, run, [prediction(row, 60.0, time=time)])
    assert {verdict.id: verdict.status for verdict in evaluation.verdicts}["7b-1gpu/train_s"] == status


@pytest.mark.parametrize(
    ("busy", "error", "status"), [(0.99, 0.01, "pass"), (0.99, 0.2, "not evaluated"), (0.5, 0.1, "fail")]
)
def test_a_predicted_gpu_load_is_not_evaluated_if_its_error_could_change_the_status(busy, error, status):
    suite = suite_named("multi_gpu_litgpt")
    row = suite_row_spec(suite, suite.row("7b-1gpu"), CARD)
    time = step_time(1.0, gpu_share=busy).model_copy(update={"gpu_busy_share_error": error})
    evaluation = predicted_evaluation(
        suite, make_run(suite="multi_gpu_litgpt", rows=("7b-1gpu",)), [prediction(row, 60.0, time=time)]
    )
    found = {verdict.id: verdict for verdict in evaluation.verdicts}
    assert found["claim/one-process-keeps-one-gpu-busy"].status == status
    assert found["claim/other-gpus-are-idle"].status == "pass"


def test_a_row_that_is_predicted_not_to_fit_has_no_predicted_time():
    result = convert_to_result(prediction(spec("grad-accumulation"), 100.0, time=step_time(2.0)))
    assert (result.speed, result.telemetry) == (None, {})


def test_a_predicted_result_does_not_count_as_measured():
    result = convert_to_result(prediction(spec("reduced-batch")))
    assert result.predicted
    assert result.device.name == "NVIDIA A100 80GB, predicted"
    assert not result.emulated
    assert (result.speed, result.losses) == (None, ())
    assert all(QUANTITIES[name](result) is None for name in (*TIME_QUANTITIES, *LOSS_QUANTITIES))


def test_a_predicted_result_has_the_memory_reserved_under_the_card_s_limit():
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
def test_the_text_of_a_predicted_outcome_names_the_outcome_and_the_needed_memory(needed, words):
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
def test_only_rows_whose_predicted_outcome_differs_from_the_lab_s_cause_a_warning(needed, expected, warned):
    line = mismatch_warning(prediction(spec("xxl"), needed), expected)
    assert line.startswith(f"xxl: {warned}") if warned else line == ""


def test_a_prediction_as_data_has_exactly_the_documented_keys():
    found = prediction_as_data(prediction(spec("baseline"), 70.0))
    assert set(found) == {
        *("suite", "row", "card", "model", "params", "trainable_params", "peak_gib", "reserved_gib", "needed_gib"),
        *("usable_gib", "margin_gib", "verdict", "expected", "agrees", "peak_phase", "peak_step", "at_peak"),
        *("optimizer_cpu_gib", "host_gib", "limited_reserved_gib", "retries", "failure", "rule_of_thumb_gib", "time"),
        *("settings", "bf16_emulated", "samples_per_s", "limited_by", "scaled", "rank"),
    }
    assert (found["verdict"], found["expected"], found["agrees"]) == ("fits", "oom", False)
