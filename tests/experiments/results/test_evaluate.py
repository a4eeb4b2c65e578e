import ast
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest

from experiments.results import evaluate as evaluating
from experiments.results.evaluate import evaluate
from experiments.results.quantities import QUANTITIES
from experiments.results.schema import Outcome
from experiments.results.verdicts import Evaluation
from experiments.results.wording import QUANTITY_LABELS_AND_UNITS
from experiments.suites.settings import Settings
from experiments.suites.suite import Quantity
from tests.support.results.evaluations import (
    PEAK,
    RATIO,
    REFERENCE,
    claim_verdict,
    last_verdict,
    outcome_verdict,
    reference_verdict,
)
from tests.support.results.in_memory import COMMON, CPU, EMULATING_GPU, ranks, result, run, suite


class TestOutcome:
    @pytest.mark.parametrize("outcome", ["fits", "oom"])
    def test_a_row_with_the_expected_outcome_passes_its_statement(self, outcome):
        verdict = outcome_verdict(outcome, result("a", outcome))
        assert (verdict.status, verdict.reason) == ("pass", "")
        assert verdict.expected == verdict.value

    def test_a_row_that_runs_out_of_memory_although_it_should_fit_fails_its_statement(self):
        verdict = outcome_verdict("fits", result("a", "oom"))
        assert (verdict.status, verdict.reason) == ("fail", "a ended as oom")

    def test_a_row_that_fits_although_it_should_run_out_of_memory_fails_its_statement(self):
        verdict = outcome_verdict("oom", result("a", "fits"))
        assert verdict.status == "fail"
        assert (verdict.expected, verdict.value) == ("out of GPU memory", "fits")

    def test_a_row_is_evaluated_on_a_larger_gpu_with_a_memory_cap(self):
        assert outcome_verdict("oom", result("a", "oom", device=EMULATING_GPU)).status == "pass"

    @pytest.mark.parametrize(
        ("got", "reason"),
        [
            (result("a", "rejected"), "a ended as rejected"),
            (result("a", size="tiny"), "a tiny model does not show what fits the card"),
            (result("a", device=CPU), "no GPU"),
            (None, "the row has not run"),
        ],
    )
    def test_outcomes_that_show_nothing_about_the_card_are_not_evaluated(self, got, reason):
        verdict = outcome_verdict("oom", got)
        assert (verdict.status, verdict.reason) == ("not evaluated", reason)

    @pytest.mark.parametrize("ending", ["error", "timeout", "host_oom"])
    @pytest.mark.parametrize("expected", ["fits", "oom", None])
    def test_the_verdict_on_a_row_with_an_error_is_error_whatever_was_expected(self, ending, expected):
        verdict = outcome_verdict(expected, result("a", ending))
        assert (verdict.status, verdict.reason) == ("error", f"a ended as {ending}")

    def test_a_row_without_statements_has_no_verdict(self):
        assert evaluate(suite([{"id": "a"}]), run("a"), {"a": result("a")}).verdicts == ()


class TestReferenceValue:
    @pytest.mark.parametrize(
        ("reserved", "status"),
        [(66.5, "pass"), (66.49, "fail"), (75.0, "pass"), (84.0, "pass"), (84.01, "fail")],
    )
    def test_the_tolerance_widens_the_range_and_values_on_its_bounds_pass(self, reserved, status):
        verdict = reference_verdict(result("a", memory={"reserved_gib": reserved}))
        assert verdict.status == status
        assert verdict.expected == "66.5 to 84 GiB"

    def test_a_failure_shows_the_measured_and_the_expected_value(self):
        verdict = reference_verdict(result("a", memory={"reserved_gib": 90.0}))
        assert verdict.reason == "a: reserved memory 90 GiB, expected 66.5 to 84 GiB"

    def test_a_row_that_has_not_run_is_not_evaluated(self):
        assert (reference_verdict(None).status, reference_verdict(None).reason) == ("not evaluated", "a has not run")

    def test_a_value_that_was_not_measured_is_not_evaluated(self):
        verdict = reference_verdict(result("a"))
        assert (verdict.status, verdict.reason) == ("not evaluated", "a has no reserved memory (a ended as fits)")

    def test_a_value_of_a_miniature_is_shown_but_not_evaluated(self):
        verdict = reference_verdict(result("a", memory={"reserved_gib": 75.0}, size="tiny"))
        assert (verdict.status, verdict.value) == ("not evaluated", "a: reserved memory 75 GiB")

    def test_a_time_is_evaluated_only_on_the_stated_card(self):
        time = {"quantity": "train_s", "low": 5.0, "high": 5.0}
        assert reference_verdict(result("a", speed={}), **time).status == "pass"
        verdict = reference_verdict(result("a", speed={}, device=EMULATING_GPU), **time)
        assert verdict.status == "not evaluated"
        assert verdict.reason == "seconds on NVIDIA H200 are not those of a100_80gb"


class TestRanks:
    @pytest.mark.parametrize(
        ("reserved", "status"), [([66.5, 84.0], "pass"), ([66.4, 80.0], "fail"), ([70.0, 84.1], "fail")]
    )
    def test_a_reference_value_passes_if_every_rank_is_within_its_range(self, reserved, status):
        assert reference_verdict(result("a", ranks=ranks(reserved_gib=reserved))).status == status

    def test_a_value_is_shown_with_its_range_over_the_ranks(self):
        verdict = reference_verdict(result("a", ranks=ranks(reserved_gib=[72.0, 70.0, 78.4])))
        assert verdict.value == "a: reserved memory 70 to 78.4 GiB over 3 ranks"
        assert reference_verdict(result("a", ranks=ranks(reserved_gib=[70.0, 70.0]))).value == (
            "a: reserved memory 70 GiB over 2 ranks"
        )

    def test_a_ratio_uses_the_highest_value_over_the_ranks_of_each_row(self):
        several = result("a", ranks=ranks(peak_gib=[10.0, 30.0]))
        verdict = claim_verdict(RATIO, several, result("b", memory=PEAK))
        assert verdict.value == "a: peak memory 3 times b's (30 vs. 10 GiB)"


SCALED = "ran on 2 of the 4 ranks that the row states"
FOUR: dict[str, Any] = {"batch_size": 2, "devices": 4, "strategy": "ddp"}


def result_on_two_ranks(row="a", **changes):
    """Return the result of a row for four devices that ran on two."""
    return result(row, settings=Settings(**COMMON, **FOUR | {"devices": 2}), **changes)


class TestFewerRanks:
    """Rows that ran on fewer ranks than they state."""

    @pytest.mark.parametrize("expect", [{"outcome": "oom"}, {"figures": [REFERENCE]}])
    def test_statements_about_a_single_row_that_ran_on_fewer_gpus_are_not_evaluated(self, expect):
        rows = [{"id": "a", "settings": FOUR, "expect": expect}]
        verdict = last_verdict([result_on_two_ranks(memory={"reserved_gib": 75.0})], rows, asked=("a",))
        assert (verdict.status, verdict.reason) == ("not evaluated", SCALED)
        assert verdict.value

    def test_a_row_that_ended_in_an_error_on_fewer_gpus_is_an_error(self):
        rows = [{"id": "a", "settings": FOUR, "expect": {"outcome": "fits"}}]
        assert last_verdict([result_on_two_ranks(outcome="error")], rows, asked=("a",)).status == "error"

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
    def test_comparisons_of_rows_that_ran_on_fewer_gpus_are_evaluated(self, check, status):
        verdict = self.claim(check)
        assert (verdict.status, verdict.reason) == (status, "" if status == "pass" else SCALED)

    @pytest.mark.parametrize("pair", [("a", "b"), ("b", "a")])
    def test_a_claim_about_all_ranks_is_not_evaluated_with_fewer_ranks(self, pair):
        check = dict(zip(("row", "over_row"), pair, strict=True)) | {"quantity": "peak_gib", "low": 0.5}
        verdict = self.claim(check, all_ranks=True)
        assert (verdict.status, verdict.reason) == ("not evaluated", SCALED)

    def claim(self, check, **fields):
        results = result_on_two_ranks(memory=PEAK, speed={}), result("b", memory=PEAK, speed={})
        return claim_verdict(check, *results, rows=[{"id": "a", "settings": FOUR}, {"id": "b"}], **fields)


class TestGrade:
    @pytest.mark.parametrize(
        ("made", "grade"),
        [
            (result("a", memory=PEAK), "measured"),
            (result("a", memory=PEAK, device=EMULATING_GPU), "emulated"),
            (result("a", memory=PEAK, device=CPU, size="tiny"), "miniature"),
            (result("a", memory=PEAK).model_copy(update={"predicted": True}), "predicted"),
        ],
    )
    def test_a_verdict_has_the_grade_of_its_evidence(self, made, grade):
        verdict = claim_verdict({"row": "a", "quantity": "peak_gib", "over_quantity": "peak_gib", "low": 1.0}, made)
        assert (verdict.status, verdict.grade) == ("pass", grade)

    def test_a_claim_has_the_worst_grade_of_its_rows(self):
        verdict = claim_verdict(RATIO, result("a", memory=PEAK), result("b", memory=PEAK, device=EMULATING_GPU))
        assert verdict.grade == "emulated"

    @pytest.mark.parametrize("outcome", ["error", "rejected"])
    def test_a_statement_that_is_not_evaluated_has_no_grade(self, outcome):
        assert outcome_verdict("fits", result("a", outcome)).grade is None


class TestExitCode:
    OUTCOMES: ClassVar[dict[str, Outcome]] = {"pass": "fits", "open": "rejected", "fails": "oom", "broken": "error"}

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
    def test_the_exit_code_of_an_error_takes_precedence_over_that_of_a_failure(self, rows, code):
        made = suite([{"id": row, "expect": {"outcome": "fits"}} for row in rows])
        assert evaluate(made, run(*rows), {row: result(row, self.OUTCOMES[row]) for row in rows}).exit_code == code

    def test_verdicts_are_counted(self):
        evaluation = evaluate(suite(), run(), {"a": result("a"), "b": result("b", "oom")})
        assert (evaluation.count("pass"), evaluation.count("fail")) == (1, 1)
        assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_every_quantity_has_a_function_that_reads_it_and_a_label():
    assert set(get_args(Quantity)) == set(QUANTITIES) == set(QUANTITY_LABELS_AND_UNITS)


EVALUATE_IMPORTS = ("obstacles", "quantities", "run_folder", "schema", "verdicts", "wording")


def test_evaluation_imports_only_data_modules_and_is_short():
    source = Path(evaluating.__file__).read_text()
    modules = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in modules}
    assert names <= {"collections.abc", "math", "pydantic", "typing"} | {
        f"experiments.{room}" for room in ("suites.suite", *(f"results.{name}" for name in EVALUATE_IMPORTS))
    }
    assert len(source.splitlines()) < 400
