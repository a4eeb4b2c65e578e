"""Why a statement fails or is not evaluated: the distance to its bound, the error of a prediction, its obstacles."""

from typing import Any

import pytest

from experiments.results.evaluate import claim_rows, evaluate_row
from experiments.results.schema import Failure
from experiments.suites.suite import Check, Claim
from tests.support.results.evaluations import PEAK, RATIO, claim_verdict, outcome_verdict, reference_verdict
from tests.support.results.in_memory import CPU, EMULATING_GPU, result, shot, suite


def of_peak(**bounds):
    return {"row": "a", "quantity": "peak_gib", **bounds}


def with_peak(gib, **more):
    return result("a", memory={"peak_gib": gib}, **more)


@pytest.mark.parametrize(
    ("bounds", "gib", "missed"),
    [
        ({"low": 80.0}, 60.0, "25 % below 80 GiB"),
        ({"high": 8.0}, 10.0, "25 % above 8 GiB"),
        ({"low": 20.0, "high": 40.0}, 10.0, "50 % below 20 GiB"),
        ({"low": 2.0, "high": 5.0}, 10.0, "100 % above 5 GiB"),
        ({"high": 0.0}, 0.2, "0.2 GiB above 0 GiB"),
        ({"low": 9.0, "high": 11.0, "outside": True}, 10.0, ""),
        ({"low": 10.0, "high": 10.0}, 10.0, ""),
    ],
)
def test_a_failure_states_the_distance_of_its_value_from_the_bound(bounds, gib, missed):
    assert claim_verdict(of_peak(**bounds), with_peak(gib)).missed == missed


SHARED_GPU = EMULATING_GPU.model_copy(update={"shared": True})


@pytest.mark.parametrize("quantity", ["samples_per_s", "gpu_util_percent", "cpu_wait_share"])
@pytest.mark.parametrize("shared", ["a", "b"])
def test_times_and_load_of_a_row_on_a_shared_gpu_are_not_evaluated(quantity, shared):
    telemetry = {"steady_gpu_util_percent": 90.0, "cpu_wait_share": 0.5}
    rows = [
        result(row, device=SHARED_GPU)
        if row == shared
        else result(row, device=EMULATING_GPU, speed={}).model_copy(update={"telemetry": telemetry})
        for row in "ab"
    ]
    found = claim_verdict({"row": "a", "quantity": quantity, "over_row": "b", "low": 0.1}, *rows)
    reason = f"{shared} shared its GPU with other rows: times and load of the GPU were not measured"
    assert (found.status, found.reason) == ("not evaluated", reason)


def test_memory_of_rows_on_a_shared_gpu_is_evaluated():
    rows = [result(row, device=SHARED_GPU, memory=PEAK) for row in "ab"]
    assert claim_verdict(RATIO, *rows).status == "pass"


def test_a_ratio_that_fails_states_its_distance_from_the_bound():
    assert claim_verdict(RATIO, with_peak(30.0), result("b", memory=PEAK)).missed == "50 % above 2 times"
    optimizer = {"row": "a", "quantity": "optimizer_cpu_gib", "over_quantity": "optimizer_gib", "high": 10.0}
    infinite = result("a", shots=(shot("after optimizer step", optimizer_cpu_gib=20.0),))
    assert claim_verdict(optimizer, infinite).missed == ""
    zero = {**RATIO, "low": None, "high": 0.0}
    assert claim_verdict(zero, with_peak(10.0), result("b", memory=PEAK)).missed == "1 times above 0 times"


def test_a_failed_reference_value_states_its_distance_from_the_bounds():
    assert reference_verdict(result("a", memory={"reserved_gib": 63.0})).missed == "5.26 % below 66.5 GiB"
    assert reference_verdict(result("a", memory={"reserved_gib": 75.0})).missed == ""


def test_a_verdict_joins_the_texts_of_its_checks_and_leaves_out_empty_and_repeated_texts():
    checks = [of_peak(high=8.0), {"row": "b", "outcome": "fits"}, of_peak(high=5.0)]
    verdict = claim_verdict(checks, with_peak(10.0))
    assert verdict.expected == ("a: peak memory at most 8 GiB; b: fits; a: peak memory at most 5 GiB")
    assert verdict.value == "a: peak memory 10 GiB; a: peak memory 10 GiB"
    assert verdict.missed == "25 % above 8 GiB; 100 % above 5 GiB"
    assert claim_verdict([checks[0], checks[0]], with_peak(10.0)).reason.count("10 GiB") == 1


SPEED: dict[str, Any] = {"error_share": 0.2, "ratio_error_share": 0.3, "idle_error": 0.25, "gpu_idle_share": 0.5}


def predicted(row, **speed):
    return result(row, speed={**SPEED, **speed}).model_copy(update={"predicted": True, "telemetry": LOAD})


LOAD = {"steady_gpu_util_percent": 60.0}


@pytest.mark.parametrize(
    ("check", "status", "error"),
    [
        ({"quantity": "step_s", "low": 0.41}, "not evaluated", "20 %"),
        ({"quantity": "step_s", "low": 0.4}, "pass", ""),
        ({"quantity": "step_s", "high": 0.59}, "not evaluated", "20 %"),
        ({"quantity": "step_s", "high": 0.6}, "pass", ""),
        ({"quantity": "step_s", "low": 0.61}, "fail", ""),
        ({"quantity": "step_s", "over_row": "b", "low": 0.7}, "not evaluated", "50 %"),
        ({"quantity": "step_s", "over_row": "b", "low": 0.5, "high": 1.5}, "pass", ""),
        ({"quantity": "step_s", "over_row": "b", "high": 1.49}, "not evaluated", "50 %"),
        ({"quantity": "gpu_idle_share", "low": 0.26}, "not evaluated", "0.25"),
        ({"quantity": "gpu_idle_share", "low": 0.25, "high": 0.75}, "pass", ""),
        ({"quantity": "gpu_idle_share", "high": 0.74}, "not evaluated", "0.25"),
        ({"quantity": "gpu_util_percent", "low": 36.0}, "not evaluated", "25"),
        ({"quantity": "gpu_util_percent", "low": 35.0, "high": 85.0}, "pass", ""),
        ({"quantity": "gpu_idle_share", "over_row": "b", "low": 0.42}, "not evaluated", "0.25 and 0.1"),
        ({"quantity": "gpu_idle_share", "over_row": "b", "low": 0.41, "high": 1.88}, "pass", ""),
        ({"quantity": "gpu_idle_share", "over_row": "b", "high": 1.87}, "not evaluated", "0.25 and 0.1"),
        ({"quantity": "gpu_util_percent", "over_row": "b", "low": 0.51}, "not evaluated", "25 and 10"),
        ({"quantity": "gpu_util_percent", "over_row": "b", "low": 0.5, "high": 1.7}, "pass", ""),
        ({"quantity": "gpu_util_percent", "over_row": "b", "high": 1.69}, "not evaluated", "25 and 10"),
        ({"quantity": "peak_gib", "low": 9.9}, "pass", ""),
    ],
)
def test_a_prediction_within_its_error_of_a_bound_is_too_close_to_call(check, status, error):
    other = predicted("b", ratio_error_share=0.4, idle_error=0.1)
    made = predicted("a").model_copy(update={"memory": with_peak(10.0).memory})
    verdict = claim_verdict({"row": "a", **check}, made, other)
    assert verdict.status == status
    assert verdict.reason.endswith(f", with a prediction error of {error}") or not error
    assert verdict.reason.startswith("too close to call: ") == bool(error)


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"quantity": "step_s", "low": 1.0}, "the time is not predicted"),
        ({"quantity": "final_loss", "low": 1.0}, "the loss is not predicted"),
        ({"quantity": "gpu_processes", "low": 1.0}, "this measure of GPU load is not predicted"),
        ({"quantity": "planned_micro_steps", "low": 1.0}, "the number of steps is not predicted"),
        ({"quantity": "peak_gib", "low": 1.0}, "a has no peak memory (a ended as fits)"),
    ],
)
def test_a_value_that_is_not_predicted_has_its_reason(check, reason):
    made = result("a").model_copy(update={"predicted": True})
    verdict = claim_verdict({"row": "a", **check}, made)
    assert (verdict.status, verdict.reason) == ("not evaluated", reason)


def test_the_reason_of_a_ratio_without_a_verdict_names_the_row_without_a_value():
    assert claim_verdict(RATIO, with_peak(10.0), result("b")).reason == "b has no peak memory (b ended as fits)"
    assert claim_verdict(RATIO, result("a"), result("b", memory=PEAK)).reason.startswith("a has no peak memory")


def test_the_first_obstacle_of_an_outcome_is_its_reason():
    assert outcome_verdict("fits", result("a", "rejected", size="tiny")).reason == "a ended as rejected"
    on_cpu = result("a").spec.settings.model_copy(update={"accelerator": "cpu"})
    assert outcome_verdict("fits", result("a", device=CPU, settings=on_cpu)).status == "pass"


@pytest.mark.parametrize(
    ("device", "check", "status"),
    [
        (EMULATING_GPU, {"quantity": "train_s", "low": 1.0}, "not evaluated"),
        (EMULATING_GPU, {"quantity": "train_s", "over_row": "b", "low": 0.5}, "pass"),
        (EMULATING_GPU, {"quantity": "gpu_idle_share", "low": 0.1}, "pass"),
        (CPU, {"quantity": "peak_gib", "low": 1.0}, "pass"),
        (CPU, {"quantity": "step_s", "low": 0.1}, "not evaluated"),
    ],
)
def test_times_are_evaluated_only_on_the_stated_card_and_memory_is_evaluated_everywhere(device, check, status):
    pair = [result(row, memory=PEAK, speed=SPEED, device=device) for row in "ab"]
    assert claim_verdict({"row": "a", **check}, *pair).status == status


@pytest.mark.parametrize(
    ("change", "counts"),
    [({}, True), ({"weights": "random"}, False), ({"data": "synthetic"}, False), ({"length": "verdict"}, False)],
)
def test_a_single_loss_counts_only_with_the_labs_weights_and_data(change, counts):
    check = {"row": "a", "quantity": "last_loss", "high": 3.0}
    made = result("a", losses=(2.5,), **change)
    assert (claim_verdict(check, made).status == "pass") == counts


@pytest.mark.parametrize(("fall", "status"), [(5e-4, "pass"), (4e-4, "not evaluated")])
def test_a_fall_of_the_loss_below_the_noise_is_not_evaluated(fall, status):
    two = result("a").spec.settings.model_copy(update={"max_epochs": 2})
    check = {"row": "a", "quantity": "loss_fall", "over_row": "b", "low": 0.1}
    pair = [result(row, losses=(2.0, 2.0 * (1 - of)), settings=two) for row, of in (("a", 0.5), ("b", fall * 1.0001))]
    assert claim_verdict(check, *pair).status == status


def test_memory_is_shown_in_a_unit_that_suits_its_size():
    assert claim_verdict(of_peak(low=0.0), with_peak(0.0125)).value == "a: peak memory 12.8 MiB"
    small = with_peak(0.25), result("b", memory={"peak_gib": 0.125})
    assert claim_verdict(RATIO, *small).value == "a: peak memory 2 times b's (256 vs. 128 MiB)"
    steps = {"row": "a", "quantity": "peak_gib", "over_quantity": "step_s", "low": 0.1}
    assert claim_verdict(steps, result("a", memory={"peak_gib": 4.0}, speed={})).value == (
        "a: peak memory 8 times its step time (4 GiB vs. 0.5 s)"
    )
    count = {"row": "a", "quantity": "planned_micro_steps", "low": 1.0}
    assert claim_verdict(count, result("a", speed={})).value == "a: number of micro-steps of the full training = 10"
    assert claim_verdict({**count, "high": 2.0}, result("a", speed={})).value.endswith("of the full training = 10")


@pytest.mark.parametrize(("quantity", "over", "ends"), [("peak_gib", "b", "b's"), ("peak_gib", None, "GiB")])
def test_the_expected_value_names_the_compared_row_or_the_unit(quantity, over, ends):
    check = {"row": "a", "quantity": quantity, "over_row": over, "low": 1.0}
    assert claim_verdict(check, with_peak(10.0), result("b", memory=PEAK)).expected.endswith(ends)
    own = {"row": "a", "quantity": "peak_gib", "over_quantity": "reserved_gib", "low": 0.5}
    assert claim_verdict(own, with_peak(10.0)).expected == "a: peak memory at least 0.5 times its reserved memory"


def test_each_row_of_a_claim_is_listed_once():
    checks = (Check(row="b", quantity="peak_gib", over_row="a", low=1.0), Check(row="a", outcome="fits"))
    assert claim_rows(Claim(id="x", says="So.", checks=checks)) == ("b", "a")


def test_the_evaluation_of_one_row_has_the_verdicts_on_its_outcome_and_values_only():
    lab = suite([{"id": "a", "expect": {"outcome": "fits"}}, {"id": "b", "expect": {"outcome": "fits"}}])
    assert [(one.id, one.status) for one in evaluate_row(lab, result("a"))] == [("a/outcome", "pass")]


def test_the_verdict_on_a_failure_in_another_phase_names_what_happened():
    failure = Failure(phase="forward", kind="OutOfMemoryError", message="")
    made = result("a", "oom").model_copy(update={"failure": failure})
    verdict = claim_verdict({"row": "a", "outcome": "oom", "phase": "backward"}, made)
    assert (verdict.status, verdict.reason, verdict.value) == ("fail", "a ended as oom", "a: out of GPU memory")
    unknown = claim_verdict({"row": "a", "outcome": "oom", "phase": "backward"}, result("a", "oom"))
    assert unknown.reason == "the phase in which a ran out of memory is not known"
