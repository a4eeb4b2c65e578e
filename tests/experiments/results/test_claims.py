import pytest

from experiments.results.evaluate import evaluate
from experiments.results.schema import Failure
from tests.support.results.evaluations import PEAK, RATIO, claim_verdict, reference_verdict
from tests.support.results.in_memory import CPU, EMULATING_GPU, GPU, result, run, shot, suite

TWO_EPOCHS = result("a").spec.settings.model_copy(update={"max_epochs": 2})


class TestClaim:
    @pytest.mark.parametrize(
        ("peak", "status"),
        [(5.0, "pass"), (20.0, "pass"), (4.99, "fail"), (20.01, "fail")],
    )
    def test_a_ratio_passes_within_its_bounds(self, peak, status):
        verdict = claim_verdict(RATIO, result("a", memory={"peak_gib": peak}), result("b", memory=PEAK))
        assert verdict.status == status

    def test_the_value_of_a_ratio_shows_both_compared_values(self):
        verdict = claim_verdict(RATIO, result("a", memory={"peak_gib": 30.0}), result("b", memory=PEAK))
        assert verdict.value == "a: peak memory 3 times b's (30 vs. 10 GiB)"
        assert verdict.reason == f"{verdict.value}, expected 0.5 to 2 times"

    @pytest.mark.parametrize(("peak", "status", "known"), [(5.0, "pass", ""), (30.0, "fail", "its weights alone")])
    def test_the_cause_of_a_known_failure_is_named_only_if_the_statement_fails(self, peak, status, known):
        verdict = claim_verdict(
            RATIO, result("a", memory={"peak_gib": peak}), result("b", memory=PEAK), known_failure="its weights alone"
        )
        assert (verdict.status, verdict.known_failure) == (status, known)
        assert verdict.reason.endswith("; known cause: its weights alone") == bool(known)

    def test_only_an_unknown_failure_changes_the_exit_code(self):
        def exit_code(*causes):
            claims = [
                {"id": f"c{n}", "says": "So.", "checks": [RATIO], "known_failure": cause}
                for n, cause in enumerate(causes)
            ]
            results = {"a": result("a", memory={"peak_gib": 30.0}), "b": result("b", memory=PEAK)}
            return evaluate(suite([{"id": "a"}, {"id": "b"}], claims), run("a", "b"), results).exit_code

        assert [exit_code("known"), exit_code("known", "known"), exit_code("known", ""), exit_code("")] == [0, 0, 1, 1]

    def test_a_reference_value_can_have_a_known_failure_too(self):
        verdict = reference_verdict(result("a", memory={"reserved_gib": 90.0}), known_failure="of that moment")
        assert (verdict.status, verdict.known_failure) == ("fail", "of that moment")

    def test_a_ratio_to_zero_is_infinite(self):
        check = {
            "row": "a",
            "quantity": "optimizer_cpu_gib",
            "over_quantity": "optimizer_gib",
            "low": 10.0,
        }
        after = shot("after optimizer step", optimizer_cpu_gib=20.0)
        verdict = claim_verdict(check, result("a", shots=(after,)))
        assert (verdict.status, verdict.value) == (
            "pass",
            "a: optimizer state in host memory 20 GiB, and its optimizer state on the GPU 0 GiB",
        )
        assert claim_verdict({**check, "low": None, "high": 10.0}, result("a", shots=(after,))).status == "fail"

    def test_a_ratio_of_zero_to_zero_is_one(self):
        zero = shot("after optimizer step")
        check = {"row": "a", "quantity": "optimizer_gib", "over_row": "b", "low": 1.0, "high": 1.0}
        assert claim_verdict(check, result("a", shots=(zero,)), result("b", shots=(zero,))).status == "pass"

    def test_a_claim_about_a_row_that_has_not_run_is_not_evaluated(self):
        verdict = claim_verdict(RATIO, result("a", memory=PEAK))
        assert (verdict.status, verdict.reason) == ("not evaluated", "b has not run")

    def test_a_claim_about_a_row_with_an_error_is_not_evaluated(self):
        verdict = claim_verdict({"row": "a", "outcome": "fits"}, result("a", "error"))
        assert (verdict.status, verdict.reason) == ("not evaluated", "a ended as error")

    @pytest.mark.parametrize("recorded", [{}, {"memory": PEAK}])
    def test_values_that_a_row_recorded_before_an_error_do_not_count(self, recorded):
        verdict = claim_verdict(RATIO, result("a", memory=PEAK), result("b", "error", **recorded))
        assert (verdict.status, verdict.reason) == ("not evaluated", "b has no results (b ended as error)")

    def test_a_claim_has_the_worst_status_of_its_checks(self):
        holds = {"row": "a", "outcome": "fits"}
        fails = {"row": "a", "quantity": "peak_gib", "high": 1.0}
        opens = {"row": "b", "outcome": "fits"}
        a = result("a", memory=PEAK)
        assert claim_verdict([holds, holds], a).status == "pass"
        assert claim_verdict([holds, opens], a).status == "not evaluated"
        verdict = claim_verdict([opens, fails, holds], a)
        assert verdict.status == "fail"
        assert verdict.reason == "a: peak memory 10 GiB, expected at most 1 GiB"

    def test_a_value_is_shown_with_its_quantity_and_unit(self):
        share = {"row": "a", "quantity": "peak_share", "low": 0.1}
        assert claim_verdict([share], result("a", memory=PEAK)).value == "a: peak memory 0.127 of the card"
        size = {"row": "a", "quantity": "peak_gib", "low": 0.1}
        assert claim_verdict([size], result("a", memory=PEAK)).value == "a: peak memory 10 GiB"

    def test_a_claim_about_rows_that_were_not_requested_is_left_out(self):
        claims = [{"id": "b-fits", "says": "B fits.", "checks": [{"row": "b", "outcome": "fits"}]}]
        assert evaluate(suite([{"id": "a"}, {"id": "b"}], claims), run("a"), {}).verdicts == ()

    def test_ratios_of_miniatures_are_evaluated_unless_the_claim_depends_on_the_size_of_the_model(self):
        tiny = result("a", memory=PEAK, size="tiny"), result("b", memory=PEAK, size="tiny")
        assert claim_verdict(RATIO, *tiny).status == "pass"
        verdict = claim_verdict(RATIO, *tiny, full_size=True)
        assert (verdict.status, verdict.reason) == (
            "not evaluated",
            "a tiny model does not show the size of the real one",
        )

    def test_an_absolute_value_of_a_miniature_is_evaluated_only_against_zero(self):
        tiny = result("a", shots=(shot("after optimizer step"),), size="tiny")
        check = {"row": "a", "quantity": "optimizer_gib"}
        assert claim_verdict({**check, "high": 0.0}, tiny).status == "pass"
        assert claim_verdict({**check, "high": 0.5}, tiny).status == "not evaluated"

    def test_a_claim_on_the_share_in_host_memory_is_not_evaluated_without_a_gpu(self):
        check = {"row": "a", "quantity": "optimizer_cpu_gib", "over_quantity": "optimizer_gib", "low": 10.0}
        verdict = claim_verdict(check, result("a", shots=(shot("after optimizer step"),), device=CPU))
        assert (verdict.status, verdict.reason) == ("not evaluated", "no GPU: all memory is host memory")

    @pytest.mark.parametrize(
        "quantity", ["samples_per_s", "step_s", "train_s", "communication_share", "gpu_idle_share"]
    )
    def test_ratios_of_times_are_evaluated_on_any_gpu_that_ran_both_rows(self, quantity):
        check = {**RATIO, "quantity": quantity}
        speed = {"communication_share": 0.4, "gpu_idle_share": 0.2}
        for device, grade in ((GPU, "measured"), (EMULATING_GPU, "emulated")):
            verdict = claim_verdict(
                check, result("a", speed=speed, device=device), result("b", speed=speed, device=device)
            )
            assert (verdict.status, verdict.grade) == ("pass", grade)

    @pytest.mark.parametrize(
        ("device", "reason"),
        [
            (CPU, "no GPU: times on a CPU are not evaluated"),
            (EMULATING_GPU, "times on NVIDIA A100-SXM4-80GB and on NVIDIA H200 are not compared"),
        ],
    )
    def test_times_of_different_devices_are_not_compared(self, device, reason):
        verdict = claim_verdict(
            {**RATIO, "quantity": "step_s"}, result("a", speed={}), result("b", speed={}, device=device)
        )
        assert (verdict.status, verdict.grade, verdict.reason) == ("not evaluated", None, reason)

    def test_for_a_mig_slice_times_measured_on_a_whole_gpu_are_not_evaluated(self):
        check = {**RATIO, "quantity": "step_s"}
        rows = [result(row, speed={}, device=EMULATING_GPU, card="h100_1g_12gb") for row in "ab"]
        verdict = claim_verdict(check, *rows)
        reason = "times on NVIDIA H200, with 8 times the multiprocessors of h100_1g_12gb, are not those of the card"
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)

    @pytest.mark.parametrize("quantity", ["gpu_idle_share", "communication_share"])
    def test_a_share_of_a_step_time_is_evaluated_on_any_gpu(self, quantity):
        check = {"row": "a", "quantity": quantity, "low": 0.1}
        assert claim_verdict(check, result("a", speed={quantity: 0.2}, device=EMULATING_GPU)).status == "pass"
        assert claim_verdict(check, result("a", speed={quantity: 0.05}, device=EMULATING_GPU)).status == "fail"

    @pytest.mark.parametrize(
        ("change", "label"),
        [
            ({}, ""),
            ({"weights": "random"}, ", with random weights"),
            ({"weights": "random", "data": "synthetic"}, ", with random weights and synthetic data"),
        ],
    )
    def test_a_loss_is_shown_with_a_note_on_random_weights_and_synthetic_data(self, change, label):
        check = {**RATIO, "quantity": "final_loss"}
        verdict = claim_verdict(check, result("a", losses=(2.5,), **change), result("b", losses=(2.0,), **change))
        assert (verdict.status, verdict.value) == (
            "pass",
            f"a: loss of the last epoch 1.25 times b's (2.5 vs. 2){label}",
        )

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"length": "verdict"}, "the lab states the loss of the full training, and this run is shorter"),
            ({"size": "tiny"}, "the loss of a tiny model is not that of the real one"),
        ],
    )
    def test_the_loss_of_a_shorter_training_or_of_a_tiny_model_is_not_evaluated(self, change, reason):
        verdict = claim_verdict(
            {**RATIO, "quantity": "final_loss"}, result("a", losses=(2.5,), **change), result("b", losses=(2.0,))
        )
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)

    @pytest.mark.parametrize("change", [{"length": "verdict"}, {"size": "tiny", "length": "verdict"}])
    @pytest.mark.parametrize(("losses", "status"), [((4.0, 3.0, 2.1), "pass"), ((4.0, 3.0, 2.5), "fail")])
    def test_losses_of_the_first_steps_are_compared_at_any_length_of_training_and_any_model_size(
        self, change, losses, status
    ):
        check = {"row": "a", "quantity": "early_loss", "over_row": "b", "low": 0.98, "high": 1.02}
        pair = result("a", losses=losses, **change), result("b", losses=(4.0, 3.0, 2.0), **change)
        assert claim_verdict(check, *pair).status == status

    @pytest.mark.parametrize(("loss", "status"), [(2.0, "fail"), (2.02, "fail"), (2.03, "pass"), (1.9, "pass")])
    def test_a_claim_that_two_values_differ_passes_if_their_ratio_is_outside_the_bounds(self, loss, status):
        check = {"row": "a", "quantity": "final_loss", "over_row": "b", "low": 0.99, "high": 1.01, "outside": True}
        verdict = claim_verdict(check, result("a", losses=(loss,)), result("b", losses=(2.0,)))
        assert verdict.status == status
        assert verdict.expected == "a: loss of the last epoch outside 0.99 to 1.01 times b's"

    def test_a_check_may_state_other_bounds_for_miniatures(self):
        check = {**RATIO, "high": 1.0, "miniature": {"high": 3.0}}
        for size, status, bounds in (("full", "fail", "0.5 to 1"), ("tiny", "pass", "at most 3")):
            pair = result("a", memory={"peak_gib": 20.0}, size=size), result("b", memory=PEAK, size=size)
            verdict = claim_verdict(check, *pair)
            assert (verdict.status, verdict.expected) == (status, f"a: peak memory {bounds} times b's")

    @pytest.mark.parametrize(
        ("losses", "over", "status", "reason"),
        [
            ((5.0, 4.0), (5.0, 4.1), "pass", ""),
            ((5.0, 4.8), (5.0, 4.1), "fail", ""),
            ((5.0, 4.0), (5.0, 5.1), "not evaluated", "the loss of b does not fall"),
            ((5.0, 4.0), (5.0, 4.999), "not evaluated", "the loss of b does not fall"),
        ],
    )
    def test_claims_on_losses_of_miniatures_compare_their_decrease(self, losses, over, status, reason):
        fall = {"quantity": "loss_fall", "low": 0.9, "high": 1.2}
        check = {"row": "a", "quantity": "final_loss", "over_row": "b", "low": 0.5, "high": 0.6, "miniature": fall}
        pair = [
            result(row, losses=row_losses, size="tiny", settings=TWO_EPOCHS)
            for row, row_losses in (("a", losses), ("b", over))
        ]
        verdict = claim_verdict(check, *pair)
        assert (verdict.status, verdict.grade) == (status, "miniature" if status != "not evaluated" else None)
        assert verdict.reason == reason or status == "fail"
        assert "a: fall of the loss from the first epoch to the last 0.9 to 1.2 times b's" in verdict.expected

    def test_the_loss_of_a_miniature_that_did_not_run_all_steps_is_not_evaluated(self):
        check = {**RATIO, "quantity": "final_loss", "miniature": {"quantity": "loss_fall", "low": 0.9}}
        pair = [result(row, losses=(5.0, 4.0), size="tiny", length="verdict", settings=TWO_EPOCHS) for row in "ab"]
        verdict = claim_verdict(check, *pair)
        assert (verdict.status, verdict.reason) == (
            "not evaluated",
            "the lab states the loss of the full training, and this run is shorter",
        )

    @pytest.mark.parametrize(("processes", "util", "status"), [(1, 97.0, "pass"), (2, 97.0, "fail"), (1, 3.0, "fail")])
    def test_a_second_process_or_an_idle_gpu_fails_a_claim_on_one_busy_process(self, processes, util, status):
        load = {"gpu_processes_max": processes, "gpu_util_percent_max": util}
        made = result("a", device=EMULATING_GPU).model_copy(update={"telemetry": load})
        checks = [
            {"row": "a", "quantity": "gpu_processes", "low": 1, "high": 1},
            {"row": "a", "quantity": "gpu_util_peak_percent", "low": 90},
        ]
        assert claim_verdict(checks, made).status == status

    @pytest.mark.parametrize(
        ("on_all_gpus", "steady", "others", "status"),
        [
            (4, 97.0, 0.0, "pass"),
            (5, 97.0, 0.0, "fail"),  # a second process
            (3, 97.0, 0.0, "fail"),  # a GPU without one
            (4, 0.0, 0.0, "fail"),  # an idle GPU
            (4, 97.0, 12.0, "fail"),  # load on another GPU
        ],
    )
    def test_a_claim_on_four_gpus_fails_with_another_number_of_processes_or_load_on_other_gpus(
        self, on_all_gpus, steady, others, status
    ):
        load = {
            "gpu_processes_max": 1.0,
            "gpu_processes_of_all_gpus_max": on_all_gpus,
            "steady_gpu_util_percent": steady,
            "other_gpu_util_percent_max": others,
        }
        device = EMULATING_GPU.model_copy(update={"count": 4})
        made = result("a", device=device).model_copy(update={"telemetry": load})
        checks = [
            {"row": "a", "quantity": "gpu_processes", "low": 4, "high": 4},
            {"row": "a", "quantity": "gpu_util_percent", "low": 90},
            {"row": "a", "quantity": "other_gpu_util_percent", "high": 0.0},
        ]
        assert claim_verdict(checks, made).status == status

    @pytest.mark.parametrize(
        ("made", "reason"),
        [
            (result("a", device=CPU), "no GPU"),
            (result("a").model_copy(update={"predicted": True}), "this measure of GPU load is not predicted"),
            (result("a"), "a has no number of processes on the GPUs (a ended as fits)"),
        ],
    )
    def test_the_load_of_gpus_is_not_evaluated_without_gpus(self, made, reason):
        verdict = claim_verdict({"row": "a", "quantity": "gpu_processes", "low": 1}, made)
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)


class TestOutOfMemory:
    """Claims about a row that ran out of memory, whose need is higher than its measured peak."""

    @pytest.mark.parametrize(
        ("outcome", "phase", "status"),
        [
            ("oom", "optimizer step", "pass"),
            ("oom", "forward", "fail"),
            ("oom", None, "not evaluated"),
            ("fits", None, "fail"),
        ],
    )
    def test_running_out_of_memory_in_another_phase_than_stated_fails_the_statement(self, outcome, phase, status):
        failure = phase and Failure(phase=phase, step=0, kind="OutOfMemoryError", message="")
        made = result("a", outcome, device=EMULATING_GPU).model_copy(update={"failure": failure})
        verdict = claim_verdict({"row": "a", "outcome": "oom", "phase": "optimizer step"}, made)
        assert verdict.status == status
        assert verdict.expected == "a: out of GPU memory in the optimizer step phase"

    @pytest.mark.parametrize(
        ("ended", "bounds", "status"),
        [
            (("oom", "fits"), {"low": 2.0}, "pass"),
            (("oom", "fits"), {"low": 4.0}, "not evaluated"),
            (("oom", "fits"), {"high": 2.0}, "fail"),
            (("oom", "fits"), {"high": 3.0}, "not evaluated"),
            (("oom", "fits"), {"low": 3.0}, "pass"),
            (("oom", "fits"), {"low": 2.0, "high": 4.0}, "not evaluated"),
            (("fits", "oom"), {"high": 4.0}, "pass"),
            (("fits", "oom"), {"high": 2.0}, "not evaluated"),
            (("fits", "oom"), {"high": 3.0}, "pass"),
            (("fits", "oom"), {"low": 3.0}, "not evaluated"),
            (("fits", "oom"), {"low": 0.0, "high": 3.0}, "pass"),
            (("fits", "oom"), {"low": 4.0}, "fail"),
            (("fits", "oom"), {"low": 2.0}, "not evaluated"),
            (("oom", "oom"), {"low": 2.0}, "not evaluated"),
        ],
    )
    def test_the_peak_of_a_row_that_ran_out_of_memory_counts_as_a_lower_bound(self, ended, bounds, status):
        a, b = ended
        check = {"row": "a", "quantity": "peak_gib", "over_row": "b", **bounds}
        verdict = claim_verdict(check, result("a", a, memory={"peak_gib": 30.0}), result("b", b, memory=PEAK))
        assert verdict.status == status
        if status == "not evaluated":
            assert verdict.reason.endswith("ran out of memory: the row needs more memory than was measured")

    def test_the_predicted_peak_of_a_row_that_runs_out_of_memory_is_no_lower_bound(self):
        pair = [result("a", memory={"peak_gib": 30.0}), result("b", "oom", memory=PEAK)]
        predicted = [one.model_copy(update={"predicted": True}) for one in pair]
        check = {"row": "a", "quantity": "peak_gib", "over_row": "b", "high": 2.0}
        assert [claim_verdict(check, *rows).status for rows in (pair, predicted)] == ["not evaluated", "fail"]

    def test_memory_measured_before_a_row_ran_out_of_memory_is_no_lower_bound(self):
        shots = (shot("after forward", activations_gib=8.0),)
        check = {"row": "b", "quantity": "activations_gib", "over_row": "a", "high": 0.7}
        verdict = claim_verdict(check, result("a", "oom", shots=shots), result("b", shots=shots))
        assert verdict.status == "fail"
