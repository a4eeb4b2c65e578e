import ast
import json
from pathlib import Path
from typing import ClassVar, get_args

import pytest
from pydantic import ValidationError

from experiments.results import evaluate as evaluating
from experiments.results.evaluate import evaluate
from experiments.results.quantities import QUANTITIES
from experiments.results.schema import Failure
from experiments.results.verdicts import Evaluation
from experiments.results.wording import QUANTITY_LABELS, format_bounds, format_number
from experiments.suites.settings import Settings
from experiments.suites.suite import Quantity
from tests.support.results import COMMON, CPU, GPU, STAND_IN, ranks, result, run, shot, suite

PEAK = {"peak_gib": 10.0}
REFERENCE = {"quantity": "reserved_gib", "low": 70.0, "high": 80.0, "tolerance": 0.05, "source": "made up"}


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


RATIO = {"row": "a", "quantity": "peak_gib", "over_row": "b", "low": 0.5, "high": 2.0}


class TestOutcome:
    @pytest.mark.parametrize("outcome", ["fits", "oom"])
    def test_as_stated_it_held(self, outcome):
        verdict = outcome_of(outcome, result("a", outcome))
        assert (verdict.status, verdict.reason) == ("pass", "")
        assert verdict.expected == verdict.value

    def test_out_of_memory_where_it_should_fit_fails(self):
        verdict = outcome_of("fits", result("a", "oom"))
        assert (verdict.status, verdict.reason) == ("fail", "a ended as oom")

    def test_an_unexpected_success_fails(self):
        verdict = outcome_of("oom", result("a", "fits"))
        assert verdict.status == "fail"
        assert (verdict.expected, verdict.value) == ("out of GPU memory", "fits")

    def test_a_stand_in_with_a_cap_is_evaluated(self):
        assert outcome_of("oom", result("a", "oom", device=STAND_IN)).status == "pass"

    @pytest.mark.parametrize(
        ("got", "reason"),
        [
            (result("a", "refused"), "a ended as refused"),
            (result("a", size="tiny"), "a tiny model does not show what fits the card"),
            (result("a", device=CPU), "no GPU"),
            (None, "the row has not run"),
        ],
    )
    def test_what_says_nothing_is_not_evaluated(self, got, reason):
        verdict = outcome_of("oom", got)
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)

    @pytest.mark.parametrize("ending", ["error", "timeout", "host_oom"])
    @pytest.mark.parametrize("expected", ["fits", "oom", None])
    def test_a_row_that_broke_says_so_whatever_was_expected(self, ending, expected):
        verdict = outcome_of(expected, result("a", ending))
        assert (verdict.status, verdict.reason) == ("error", f"a ended as {ending}")

    def test_a_row_without_expectation_is_not_evaluated_at_all(self):
        assert evaluate(suite([{"id": "a"}]), run("a"), {"a": result("a")}).verdicts == ()


class TestReferenceValue:
    @pytest.mark.parametrize(
        ("reserved", "status"),
        [(66.5, "pass"), (66.49, "fail"), (75.0, "pass"), (84.0, "pass"), (84.01, "fail")],
    )
    def test_the_tolerance_widens_the_range_and_its_edges_hold(self, reserved, status):
        verdict = reference_of(result("a", memory={"reserved_gib": reserved}))
        assert verdict.status == status
        assert verdict.expected == "66.5 to 84 GiB"

    def test_what_fails_says_what_was_measured_and_expected(self):
        verdict = reference_of(result("a", memory={"reserved_gib": 90.0}))
        assert verdict.reason == "a: 90 GiB, expected reserved memory of a 66.5 to 84 GiB"

    def test_a_row_that_has_not_run_is_not_evaluated(self):
        assert (reference_of(None).status, reference_of(None).reason) == ("not evaluated", "a has not run")

    def test_a_value_that_was_not_measured_is_not_evaluated(self):
        verdict = reference_of(result("a"))
        assert (verdict.status, verdict.reason) == ("not evaluated", "a has no reserved memory (a ended as fits)")

    def test_a_miniature_is_not_evaluated_but_shown(self):
        verdict = reference_of(result("a", memory={"reserved_gib": 75.0}, size="tiny"))
        assert (verdict.status, verdict.value) == ("not evaluated", "a: 75 GiB")

    def test_a_time_is_evaluated_on_the_card_itself_and_not_on_a_stand_in(self):
        time = {"quantity": "train_s", "low": 5.0, "high": 5.0}
        assert reference_of(result("a", speed={}), **time).status == "pass"
        verdict = reference_of(result("a", speed={}, device=STAND_IN), **time)
        assert verdict.status == "not evaluated"
        assert verdict.reason == "seconds on NVIDIA H200 are not those of a100_80gb"


class TestRanks:
    @pytest.mark.parametrize(
        ("reserved", "status"), [([66.5, 84.0], "pass"), ([66.4, 80.0], "fail"), ([70.0, 84.1], "fail")]
    )
    def test_a_figure_holds_when_that_of_every_rank_is_inside(self, reserved, status):
        assert reference_of(result("a", ranks=ranks(reserved_gib=reserved))).status == status

    def test_a_figure_shows_its_range_over_the_ranks(self):
        verdict = reference_of(result("a", ranks=ranks(reserved_gib=[72.0, 70.0, 78.4])))
        assert verdict.value == "a: 70 to 78.4 GiB over 3 ranks"
        assert reference_of(result("a", ranks=ranks(reserved_gib=[70.0, 70.0]))).value == "a: 70 GiB over 2 ranks"

    def test_a_ratio_is_of_the_ranks_with_the_most(self):
        several = result("a", ranks=ranks(peak_gib=[10.0, 30.0]))
        verdict = claim_of(RATIO, several, result("b", memory=PEAK))
        assert verdict.value == "3 times b (30 vs. 10 GiB)"


SCALED = "ran on 2 of the 4 ranks that the row states"
FOUR = {"batch_size": 2, "devices": 4, "strategy": "ddp"}


def on_two(row="a", **changes):
    """The result of a row for four devices that ran on two."""
    return result(row, settings=Settings(**COMMON, **FOUR | {"devices": 2}), **changes)


class TestScaledDown:
    """Rows that ran on fewer ranks than they need."""

    @pytest.mark.parametrize("expect", [{"outcome": "oom"}, {"figures": [REFERENCE]}])
    def test_what_is_stated_of_the_row_alone_is_not_evaluated(self, expect):
        rows = [{"id": "a", "settings": FOUR, "expect": expect}]
        verdict = evaluated([on_two(memory={"reserved_gib": 75.0})], rows, asked=("a",))
        assert (verdict.status, verdict.reason) == ("not evaluated", SCALED)
        assert verdict.value

    def test_a_row_that_broke_says_so_all_the_same(self):
        rows = [{"id": "a", "settings": FOUR, "expect": {"outcome": "fits"}}]
        assert evaluated([on_two(outcome="error")], rows, asked=("a",)).status == "error"

    @pytest.mark.parametrize(
        ("check", "status"),
        [
            (RATIO, "pass"),
            ({"row": "b", "quantity": "peak_gib", "over_row": "a", "low": 0.5}, "pass"),
            ({"row": "a", "quantity": "peak_gib", "low": 5.0}, "not evaluated"),
            ({"row": "a", "outcome": "fits"}, "not evaluated"),
            ({"row": "a", "quantity": "train_s", "over_row": "b", "low": 0.5}, "pass"),
        ],
    )
    def test_they_are_evaluated_beside_other_rows_and_not_by_themselves(self, check, status):
        verdict = self.claim(check)
        assert (verdict.status, verdict.reason) == (status, "" if status == "pass" else SCALED)

    @pytest.mark.parametrize("pair", [("a", "b"), ("b", "a")])
    def test_a_claim_about_all_ranks_is_not_evaluated_by_fewer(self, pair):
        check = dict(zip(("row", "over_row"), pair, strict=True)) | {"quantity": "peak_gib", "low": 0.5}
        verdict = self.claim(check, all_ranks=True)
        assert (verdict.status, verdict.reason) == ("not evaluated", SCALED)

    def claim(self, check, **about):
        results = on_two(memory=PEAK, speed={}), result("b", memory=PEAK, speed={})
        return claim_of(check, *results, rows=[{"id": "a", "settings": FOUR}, {"id": "b"}], **about)


class TestClaim:
    @pytest.mark.parametrize(
        ("peak", "status"),
        [(5.0, "pass"), (20.0, "pass"), (4.99, "fail"), (20.01, "fail")],
    )
    def test_a_ratio_is_held_to_its_bounds(self, peak, status):
        verdict = claim_of(RATIO, result("a", memory={"peak_gib": peak}), result("b", memory=PEAK))
        assert verdict.status == status

    def test_a_ratio_shows_both_values(self):
        verdict = claim_of(RATIO, result("a", memory={"peak_gib": 30.0}), result("b", memory=PEAK))
        assert verdict.value == "3 times b (30 vs. 10 GiB)"
        assert verdict.reason == "3 times b (30 vs. 10 GiB), expected peak memory of a 0.5 to 2 times that of b"

    @pytest.mark.parametrize(("peak", "status", "known"), [(5.0, "pass", ""), (30.0, "fail", "its weights alone")])
    def test_a_known_failure_names_its_cause_only_if_it_fails(self, peak, status, known):
        verdict = claim_of(
            RATIO, result("a", memory={"peak_gib": peak}), result("b", memory=PEAK), known_failure="its weights alone"
        )
        assert (verdict.status, verdict.known_failure) == (status, known)
        assert verdict.reason.endswith("; known: its weights alone") == bool(known)

    def test_only_a_failure_that_is_not_known_changes_the_exit_code(self):
        def exit_code(*causes):
            claims = [
                {"id": f"c{n}", "says": "So.", "checks": [RATIO], "known_failure": cause}
                for n, cause in enumerate(causes)
            ]
            results = {"a": result("a", memory={"peak_gib": 30.0}), "b": result("b", memory=PEAK)}
            return evaluate(suite([{"id": "a"}, {"id": "b"}], claims), run("a", "b"), results).exit_code

        assert [exit_code("known"), exit_code("known", "known"), exit_code("known", ""), exit_code("")] == [0, 0, 1, 1]

    def test_a_reference_value_may_be_known_to_fail_as_well(self):
        verdict = reference_of(result("a", memory={"reserved_gib": 90.0}), known_failure="of that moment")
        assert (verdict.status, verdict.known_failure) == ("fail", "of that moment")

    def test_a_ratio_to_nothing_is_infinite(self):
        check = {
            "row": "a",
            "quantity": "optimizer_cpu_gib",
            "over_quantity": "optimizer_gib",
            "low": 10.0,
        }
        after = shot("after optimizer step", optimizer_cpu_gib=20.0)
        verdict = claim_of(check, result("a", shots=(after,)))
        assert (verdict.status, verdict.value) == (
            "pass",
            "infinitely many times optimizer state on the GPU (20 vs. 0 GiB)",
        )
        assert claim_of({**check, "low": None, "high": 10.0}, result("a", shots=(after,))).status == "fail"

    def test_nothing_to_nothing_is_as_much(self):
        zero = shot("after optimizer step")
        check = {"row": "a", "quantity": "optimizer_gib", "over_row": "b", "low": 1.0, "high": 1.0}
        assert claim_of(check, result("a", shots=(zero,)), result("b", shots=(zero,))).status == "pass"

    def test_a_row_that_has_not_run_leaves_the_claim_open(self):
        verdict = claim_of(RATIO, result("a", memory=PEAK))
        assert (verdict.status, verdict.reason) == ("not evaluated", "b has not run")

    def test_a_row_that_broke_leaves_the_claim_open(self):
        verdict = claim_of({"row": "a", "outcome": "fits"}, result("a", "error"))
        assert (verdict.status, verdict.reason) == ("not evaluated", "a ended as error")

    def test_a_row_without_the_value_leaves_the_claim_open(self):
        verdict = claim_of(RATIO, result("a", memory=PEAK), result("b", "error"))
        assert (verdict.status, verdict.reason) == ("not evaluated", "b has no peak memory (b ended as error)")

    def test_all_checks_must_hold_and_the_worst_decides(self):
        holds = {"row": "a", "outcome": "fits"}
        fails = {"row": "a", "quantity": "peak_gib", "high": 1.0}
        opens = {"row": "b", "outcome": "fits"}
        a = result("a", memory=PEAK)
        assert claim_of([holds, holds], a).status == "pass"
        assert claim_of([holds, opens], a).status == "not evaluated"
        verdict = claim_of([opens, fails, holds], a)
        assert verdict.status == "fail"
        assert verdict.reason == "a: 10 GiB, expected peak memory of a at most 1 GiB"

    def test_a_claim_about_rows_that_were_not_asked_for_is_left_out(self):
        claims = [{"id": "b-fits", "says": "B fits.", "checks": [{"row": "b", "outcome": "fits"}]}]
        assert evaluate(suite([{"id": "a"}, {"id": "b"}], claims), run("a"), {}).verdicts == ()

    def test_ratios_hold_in_miniature_where_the_claim_is_not_of_size(self):
        tiny = result("a", memory=PEAK, size="tiny"), result("b", memory=PEAK, size="tiny")
        assert claim_of(RATIO, *tiny).status == "pass"
        verdict = claim_of(RATIO, *tiny, full_size=True)
        assert (verdict.status, verdict.reason) == (
            "not evaluated",
            "a tiny model does not show the size of the real one",
        )

    def test_an_absolute_reference_of_a_miniature_is_evaluated_only_where_it_is_zero(self):
        tiny = result("a", shots=(shot("after optimizer step"),), size="tiny")
        check = {"row": "a", "quantity": "optimizer_gib"}
        assert claim_of({**check, "high": 0.0}, tiny).status == "pass"
        assert claim_of({**check, "high": 0.5}, tiny).status == "not evaluated"

    def test_a_share_in_host_memory_is_not_evaluated_without_a_gpu(self):
        check = {"row": "a", "quantity": "optimizer_cpu_gib", "over_quantity": "optimizer_gib", "low": 10.0}
        verdict = claim_of(check, result("a", shots=(shot("after optimizer step"),), device=CPU))
        assert (verdict.status, verdict.reason) == ("not evaluated", "no GPU: all memory is host memory")

    @pytest.mark.parametrize(
        "quantity", ["samples_per_s", "step_s", "train_s", "communication_share", "gpu_idle_share"]
    )
    def test_ratios_of_times_are_evaluated_on_whatever_gpu_ran_both_rows(self, quantity):
        check = {**RATIO, "quantity": quantity}
        speed = {"communication_share": 0.4, "gpu_idle_share": 0.2}
        for device, grade in ((GPU, "measured"), (STAND_IN, "emulated")):
            verdict = claim_of(check, result("a", speed=speed, device=device), result("b", speed=speed, device=device))
            assert (verdict.status, verdict.grade) == ("pass", grade)

    @pytest.mark.parametrize(
        ("device", "reason"),
        [
            (CPU, "no GPU: times on a CPU are not evaluated"),
            (STAND_IN, "times on NVIDIA A100-SXM4-80GB and on NVIDIA H200 are not compared"),
        ],
    )
    def test_times_of_two_kinds_of_device_are_not_compared(self, device, reason):
        verdict = claim_of({**RATIO, "quantity": "step_s"}, result("a", speed={}), result("b", speed={}, device=device))
        assert (verdict.status, verdict.grade, verdict.reason) == ("not evaluated", None, reason)

    @pytest.mark.parametrize("quantity", ["gpu_idle_share", "communication_share"])
    def test_a_share_of_a_step_is_no_absolute_time(self, quantity):
        check = {"row": "a", "quantity": quantity, "low": 0.1}
        assert claim_of(check, result("a", speed={quantity: 0.2}, device=STAND_IN)).status == "pass"
        assert claim_of(check, result("a", speed={quantity: 0.05}, device=STAND_IN)).status == "fail"

    @pytest.mark.parametrize(
        ("change", "label"),
        [
            ({}, ""),
            ({"weights": "random"}, ", with random weights"),
            ({"weights": "random", "data": "synthetic"}, ", with random weights and synthetic data"),
        ],
    )
    def test_a_loss_says_what_it_was_trained_from(self, change, label):
        check = {**RATIO, "quantity": "final_loss"}
        verdict = claim_of(check, result("a", losses=(2.5,), **change), result("b", losses=(2.0,), **change))
        assert (verdict.status, verdict.value) == ("pass", f"1.25 times b (2.5 vs. 2){label}")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"length": "verdict"}, "the loss is stated for the full length of the training"),
            ({"size": "tiny"}, "the loss of a tiny model is not that of the real one"),
        ],
    )
    def test_a_loss_of_another_training_is_not_evaluated(self, change, reason):
        verdict = claim_of(
            {**RATIO, "quantity": "final_loss"}, result("a", losses=(2.5,), **change), result("b", losses=(2.0,))
        )
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)

    @pytest.mark.parametrize(("loss", "status"), [(2.0, "fail"), (2.02, "fail"), (2.03, "pass"), (1.9, "pass")])
    def test_what_must_differ_lies_outside_the_bounds(self, loss, status):
        check = {"row": "a", "quantity": "final_loss", "over_row": "b", "low": 0.99, "high": 1.01, "outside": True}
        verdict = claim_of(check, result("a", losses=(loss,)), result("b", losses=(2.0,)))
        assert verdict.status == status
        assert verdict.expected == "loss of the last epoch of a outside 0.99 to 1.01 times that of b"

    def test_a_miniature_has_bounds_of_its_own_where_the_check_gives_them(self):
        check = {**RATIO, "high": 1.0, "miniature": {"high": 3.0}}
        for size, status, bounds in (("full", "fail", "0.5 to 1"), ("tiny", "pass", "at most 3")):
            pair = result("a", memory={"peak_gib": 20.0}, size=size), result("b", memory=PEAK, size=size)
            verdict = claim_of(check, *pair)
            assert (verdict.status, verdict.expected) == (status, f"peak memory of a {bounds} times that of b")

    @pytest.mark.parametrize(("processes", "util", "status"), [(1, 97.0, "pass"), (2, 97.0, "fail"), (1, 3.0, "fail")])
    def test_a_second_process_or_an_idle_gpu_fails(self, processes, util, status):
        load = {"gpu_processes_max": processes, "gpu_util_percent_max": util}
        made = result("a", device=STAND_IN).model_copy(update={"telemetry": load})
        checks = [
            {"row": "a", "quantity": "gpu_processes", "low": 1, "high": 1},
            {"row": "a", "quantity": "gpu_util_peak_percent", "low": 90},
        ]
        assert claim_of(checks, made).status == status

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
    def test_four_gpus_have_four_processes_and_the_others_idle(self, on_all_gpus, steady, others, status):
        load = {
            "gpu_processes_max": 1.0,
            "gpu_processes_of_all_gpus_max": on_all_gpus,
            "steady_gpu_util_percent": steady,
            "other_gpu_util_percent_max": others,
        }
        device = STAND_IN.model_copy(update={"count": 4})
        made = result("a", device=device).model_copy(update={"telemetry": load})
        checks = [
            {"row": "a", "quantity": "gpu_processes", "low": 4, "high": 4},
            {"row": "a", "quantity": "gpu_util_percent", "low": 90},
            {"row": "a", "quantity": "other_gpu_util_percent", "high": 0.0},
        ]
        assert claim_of(checks, made).status == status

    @pytest.mark.parametrize(
        ("made", "reason"),
        [
            (result("a", device=CPU), "no GPU"),
            (result("a").model_copy(update={"predicted": True}), "the load of GPUs is not predicted"),
            (result("a"), "a has no number of processes on the GPUs (a ended as fits)"),
        ],
    )
    def test_the_load_of_gpus_is_told_by_gpus_alone(self, made, reason):
        verdict = claim_of({"row": "a", "quantity": "gpu_processes", "low": 1}, made)
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)


class TestOutOfMemory:
    """A row that ran out of memory needed more than it reached."""

    @pytest.mark.parametrize(
        ("outcome", "phase", "status"),
        [
            ("oom", "optimizer step", "pass"),
            ("oom", "forward", "fail"),
            ("oom", None, "not evaluated"),
            ("fits", None, "fail"),
        ],
    )
    def test_the_memory_runs_out_in_the_stated_phase(self, outcome, phase, status):
        failure = phase and Failure(phase=phase, step=0, kind="OutOfMemoryError", message="")
        made = result("a", outcome, device=STAND_IN).model_copy(update={"failure": failure})
        verdict = claim_of({"row": "a", "outcome": "oom", "phase": "optimizer step"}, made)
        assert verdict.status == status
        assert verdict.expected == "a: out of GPU memory in the optimizer step phase"

    @pytest.mark.parametrize(
        ("ended", "bounds", "status"),
        [
            (("oom", "fits"), {"low": 2.0}, "pass"),
            (("oom", "fits"), {"low": 4.0}, "not evaluated"),
            (("oom", "fits"), {"high": 2.0}, "fail"),
            (("oom", "fits"), {"high": 4.0}, "not evaluated"),
            (("fits", "oom"), {"high": 4.0}, "pass"),
            (("fits", "oom"), {"high": 2.0}, "not evaluated"),
            (("fits", "oom"), {"low": 4.0}, "fail"),
            (("fits", "oom"), {"low": 2.0}, "not evaluated"),
            (("oom", "oom"), {"low": 2.0}, "not evaluated"),
        ],
    )
    def test_its_peak_decides_only_what_a_higher_one_would_not_change(self, ended, bounds, status):
        a, b = ended
        check = {"row": "a", "quantity": "peak_gib", "over_row": "b", **bounds}
        verdict = claim_of(check, result("a", a, memory={"peak_gib": 30.0}), result("b", b, memory=PEAK))
        assert verdict.status == status
        if status == "not evaluated":
            assert verdict.reason.endswith("ran out of memory: it needs more than it reached")

    def test_a_predicted_peak_is_what_the_row_needs(self):
        pair = [result("a", memory={"peak_gib": 30.0}), result("b", "oom", memory=PEAK)]
        predicted = [one.model_copy(update={"predicted": True}) for one in pair]
        check = {"row": "a", "quantity": "peak_gib", "over_row": "b", "high": 2.0}
        assert [claim_of(check, *rows).status for rows in (pair, predicted)] == ["not evaluated", "fail"]

    def test_its_parts_at_a_point_that_it_reached_are_exact(self):
        shots = (shot("after forward", activations_gib=8.0),)
        check = {"row": "b", "quantity": "activations_gib", "over_row": "a", "high": 0.7}
        verdict = claim_of(check, result("a", "oom", shots=shots), result("b", shots=shots))
        assert verdict.status == "fail"


class TestGrade:
    @pytest.mark.parametrize(
        ("made", "grade"),
        [
            (result("a", memory=PEAK), "measured"),
            (result("a", memory=PEAK, device=STAND_IN), "emulated"),
            (result("a", memory=PEAK, device=CPU, size="tiny"), "miniature"),
            (result("a", memory=PEAK).model_copy(update={"predicted": True}), "predicted"),
        ],
    )
    def test_a_verdict_names_what_it_rests_on(self, made, grade):
        verdict = claim_of({"row": "a", "quantity": "peak_gib", "over_quantity": "peak_gib", "low": 1.0}, made)
        assert (verdict.status, verdict.grade) == ("pass", grade)

    def test_a_claim_has_the_grade_of_its_worst_row(self):
        verdict = claim_of(RATIO, result("a", memory=PEAK), result("b", memory=PEAK, device=STAND_IN))
        assert verdict.grade == "emulated"

    @pytest.mark.parametrize("outcome", ["error", "refused"])
    def test_what_was_not_evaluated_has_none(self, outcome):
        assert outcome_of("fits", result("a", outcome)).grade is None


class TestExitCode:
    OUTCOMES: ClassVar = {"pass": "fits", "open": "refused", "fails": "oom", "broken": "error"}

    @pytest.mark.parametrize(
        ("rows", "code"),
        [
            (("pass",), 0),
            (("open",), 0),
            (("pass", "open"), 0),
            (("pass", "open", "fails"), 1),
            (("broken",), 3),
            (("fails", "broken", "pass", "open"), 3),
        ],
    )
    def test_what_broke_comes_before_what_fails(self, rows, code):
        made = suite([{"id": row, "expect": {"outcome": "fits"}} for row in rows])
        assert evaluate(made, run(*rows), {row: result(row, self.OUTCOMES[row]) for row in rows}).exit_code == code

    def test_verdicts_are_counted(self):
        evaluation = evaluate(suite(), run(), {"a": result("a"), "b": result("b", "oom")})
        assert (evaluation.count("pass"), evaluation.count("fail")) == (1, 1)
        assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


class TestStoredVerdicts:
    """Files of earlier schema versions, as the programs of their time wrote them."""

    FOLDER = Path(__file__).parent / "stored"

    @pytest.mark.parametrize("version", [1, 2])
    def test_files_of_earlier_versions_are_read_with_the_words_of_today(self, version):
        text = (self.FOLDER / f"verdict-{version}.json").read_text()
        read = Evaluation.model_validate_json(text)
        stored = json.loads(text)
        assert (stored["schema_version"], read.schema_version) == (version, 3)
        assert [one.id for one in read.verdicts] == [one["id"] for one in stored["verdicts"]]
        assert [one.value for one in read.verdicts] == [one["measured"] for one in stored["verdicts"]]
        assert {one.status for one in read.verdicts} == {"pass", "fail", "not evaluated"}
        assert {one.kind for one in read.verdicts} == {"outcome", "reference value", "claim"}
        assert Evaluation.model_validate_json(read.model_dump_json()) == read

    @pytest.mark.parametrize(
        ("change", "grade"), [({"basis": "predicted"}, "predicted"), ({"size": "tiny"}, "miniature"), ({}, None)]
    )
    def test_a_file_of_version_2_has_the_grade_that_follows_from_it(self, change, grade):
        stored = json.loads((self.FOLDER / "verdict-2.json").read_text())
        stored["basis"] = change.get("basis", "measured")
        stored["run"]["size"] = change.get("size", "full")
        for verdict in Evaluation.model_validate(stored).verdicts:
            assert verdict.grade == (grade if verdict.status in ("pass", "fail") else None)

    def test_an_error_of_schema_version_1_is_an_error(self):
        stored = (self.FOLDER / "verdict-1.json").read_text().replace('"did not hold"', '"broke"')
        assert Evaluation.model_validate_json(stored).exit_code == 3

    @pytest.mark.parametrize(
        "change",
        [
            {"schema_version": 4},
            {"schema_version": 3},
            {"verdicts": 5},
            {"verdicts": [5]},
            {"verdicts": [{"status": []}]},
        ],
    )
    @pytest.mark.parametrize("version", [1, 2])
    def test_other_files_are_rejected(self, version, change):
        stored = json.loads((self.FOLDER / f"verdict-{version}.json").read_text())
        with pytest.raises(ValidationError):
            Evaluation.model_validate_json(json.dumps(stored | change))


def test_every_quantity_has_a_reader_and_a_label():
    assert set(get_args(Quantity)) == set(QUANTITIES) == set(QUANTITY_LABELS)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(2.0, None, "at least 2"), (None, 0.7, "at most 0.7"), (None, 0.0, "at most 0"), (13.3, 14.7, "13.3 to 14.7")],
)
def test_bounds_in_words(low, high, words):
    assert format_bounds(low, high) == words
    assert format_bounds(5.0, 5.0) == "5"


def test_numbers_as_people_read_them():
    assert [format_number(value) for value in (0.0, 0.1234, 78.5678, 12345.6)] == ["0", "0.123", "78.6", "12,346"]


EVALUATE_IMPORTS = ("obstacles", "quantities", "run_folder", "schema", "verdicts", "wording")


def test_evaluating_is_pure_and_short():
    source = Path(evaluating.__file__).read_text()
    modules = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in modules}
    assert names <= {"collections.abc", "math", "pydantic", "typing"} | {
        f"experiments.{room}" for room in ("suites.suite", *(f"results.{name}" for name in EVALUATE_IMPORTS))
    }
    assert len(source.splitlines()) < 400
