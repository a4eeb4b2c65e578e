"""The sentences at the head of a report."""

from typing import Any

import pytest

from experiments.report.identity import identity_facts
from experiments.report.words import (
    format_gib,
    format_memory,
    format_percent,
    format_share,
    format_stages,
    headline,
    lower_first,
    machine_in_words,
    predicted_headline,
    remarks,
    size_and_machines_sentence,
)
from experiments.results.schema import StageTimes
from experiments.results.verdicts import Contradiction, Evaluation, Grade, Status, Verdict
from experiments.results.wording import GRADE_NAMES
from experiments.suites.suite import suite_named
from tests.support.results.handwritten import A100, EMULATING_GPU_NAME, H200, PROCESSOR, make_result, make_run


def verdict(number: int, status: Status, grade: Grade | None = None) -> Verdict:
    return Verdict(id=str(number), kind="claim", says="", rows=(), status=status, grade=grade, expected="", value="")


def evaluation(**counts: int) -> Evaluation:
    """Return an evaluation with these numbers of verdicts by status, or of passed verdicts by grade."""
    names = [name.replace("_", " ") for name, count in counts.items() for _ in range(count)]
    kinds: list[tuple[Any, Any]] = [("pass", name) if name in GRADE_NAMES else (name, None) for name in names]
    verdicts = [verdict(number, *kind) for number, kind in enumerate(kinds)]
    return Evaluation(run=make_run(), verdicts=tuple(verdicts))


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, "The lab states nothing about these rows."),
        (
            {"pass": 14, "fail": 2, "not_evaluated": 9},
            "2 of 16 statements fail; 14 pass; 9 were not evaluated.",
        ),
        ({"pass": 3}, "All 3 statements pass."),
        ({"predicted": 3}, "All 3 statements pass, predicted."),
        (
            {"miniature": 9, "predicted": 29, "fail": 3},
            "3 of 41 statements fail; 38 pass: 29 predicted, 9 measured in miniature.",
        ),
        (
            {"emulated": 1, "measured": 1, "not_evaluated": 2},
            "All 2 statements pass: 1 measured, 1 measured on a GPU that emulates the card; 2 were not evaluated.",
        ),
        ({"measured": 1}, "The statement passes, measured."),
        ({"pass": 1, "not_evaluated": 1}, "The statement passes; 1 was not evaluated."),
        ({"fail": 1}, "The statement fails."),
        ({"fail": 2}, "None of 2 statements passes."),
        ({"not_evaluated": 5}, "None of the 5 statements was evaluated."),
        ({"not_evaluated": 5, "error": 1}, "1 error; 5 were not evaluated."),
        ({"error": 2}, "2 errors."),
        ({"pass": 2, "error": 1}, "1 error; 2 statements pass."),
    ],
)
def test_the_headline_counts_the_statuses(counts: dict[str, int], sentence: str) -> None:
    assert headline(evaluation(**counts)) == sentence


@pytest.mark.parametrize(("count", "words"), [(1, "1 prediction contradicts"), (2, "2 predictions contradict")])
def test_the_headline_counts_predictions_that_contradict_a_measurement(count: int, words: str) -> None:
    one = Contradiction(id="0", says="", measured=verdict(0, "fail"), predicted=verdict(0, "pass"))
    found = evaluation(emulated=2).model_copy(update={"contradictions": (one,) * count})
    assert headline(found).startswith(f"{words} a measurement; ")


@pytest.mark.parametrize(
    ("known", "words"), [(0, ""), (1, ", 1 of them with a known cause"), (2, " with a known cause")]
)
def test_the_headline_says_how_many_failures_are_known(known: int, words: str) -> None:
    found = evaluation(**{"pass": 1, "fail": 2})
    fails = [one.model_copy(update={"known_failure": "cause"}) for one in found.verdicts[1 : 1 + known]]
    verdicts = (found.verdicts[0], *fails, *found.verdicts[1 + known :])
    assert headline(found.model_copy(update={"verdicts": verdicts})) == f"2 of 3 statements fail{words}; 1 passes."


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"pass": 2}, "All 2 statements about memory are predicted to pass."),
        (
            {"pass": 20, "fail": 2, "not_evaluated": 8},
            "20 of 22 statements about memory are predicted to pass; 8 cannot be predicted.",
        ),
        ({"fail": 2}, "0 of 2 statements about memory are predicted to pass."),
        ({"not_evaluated": 2}, "No statement is about memory, so none can be predicted."),
    ],
)
def test_the_headline_of_a_prediction_counts_what_it_predicts(counts: dict[str, int], sentence: str) -> None:
    assert predicted_headline(evaluation(**counts)) == sentence


def test_the_headline_does_not_count_known_failures_if_all_failures_are_known() -> None:
    found = evaluation(fail=1)
    known = found.verdicts[0].model_copy(update={"known_failure": "cause"})
    assert headline(found.model_copy(update={"verdicts": (known,)})) == "The statement fails with a known cause."
    assert headline(evaluation(**{"pass": 1, "fail": 1})) == "1 of 2 statements fails; 1 passes."
    assert headline(evaluation(**{"pass": 1, "error": 2})) == "2 errors; 1 statement passes."


def test_a_gpu_that_emulates_a_card_is_named() -> None:
    assert machine_in_words(make_result(make_run(), "baseline", device=H200)) == EMULATING_GPU_NAME


def test_an_emulating_gpu_without_a_memory_cap_is_named() -> None:
    device = H200.model_copy(update={"cap_gib": None, "count": 4})
    assert (
        machine_in_words(make_result(make_run(), "baseline", device=device)) == "4 x NVIDIA H200, emulating a100_80gb"
    )


def test_an_emulating_gpu_of_the_same_chip_is_marked() -> None:
    device = H200.model_copy(update={"cap_gib": 92.55})
    result = make_result(make_run(card="h100_94gb"), "baseline", device=device)
    assert machine_in_words(result) == "NVIDIA H200 capped at 92.5 GiB, emulating h100_94gb, which has the same chip"


def test_a_shared_gpu_is_named_and_a_remark_says_that_its_times_are_not_evaluated() -> None:
    run, device = make_run(), H200.model_copy(update={"shared": True})
    results = {"xxl": make_result(run, "xxl", device=device)}
    assert machine_in_words(results["xxl"]) == f"{EMULATING_GPU_NAME}, shared with other rows"
    found = remarks(run, suite_named(run.suite), evaluation(), results)
    assert any("Rows shared a GPU, each with this limit: their times and the utilization" in one for one in found)
    assert not any("ratios between rows are evaluated" in one for one in found)


def test_times_of_rows_that_shared_a_gpu_are_not_added_up_to_gpu_hours() -> None:
    run = make_run()
    for shared, cost in ((False, ["1 GPU-hours"]), (True, [])):
        device = H200.model_copy(update={"shared": shared})
        results = {row: make_result(run, row, device=device, gpu_s=1800.0) for row in ("xxl", "xxl-sgd")}
        assert [fact.value for fact in identity_facts(run, results) if fact.name == "cost"] == cost


def test_the_gpu_hours_of_a_row_with_several_ranks_are_counted_once() -> None:
    run, four_gpus = make_run(), H200.model_copy(update={"count": 4})
    results = {"xxl": make_result(run, "xxl", device=four_gpus, gpu_s=4 * 900.0)}
    assert [fact.value for fact in identity_facts(run, results) if fact.name == "cost"] == ["1 GPU-hours"]


def test_a_gpu_that_is_the_card_of_the_lab_is_not_named_as_emulating() -> None:
    assert machine_in_words(make_result(make_run(), "baseline", device=A100)) == "NVIDIA A100 80GB PCIe"


def test_a_run_with_tiny_models_is_named_as_such() -> None:
    run = make_run(size="tiny")
    result = make_result(run, "baseline", device=PROCESSOR)
    assert machine_in_words(result) == "a CPU (AMD EPYC 7763), in miniature"
    assert "This is a miniature on a CPU (AMD EPYC 7763)" in size_and_machines_sentence(run, {"baseline": result})


def test_each_machine_of_a_run_is_named_once_with_its_largest_number_of_gpus() -> None:
    run, two = make_run(), A100.model_copy(update={"count": 2})
    devices = {"baseline": A100, "xxl": two, "xxl-sgd": PROCESSOR.model_copy(update={"count": 4})}
    results = {row: make_result(run, row, device=device) for row, device in devices.items()}
    assert size_and_machines_sentence(run, results) == (
        "At full size on 2 x NVIDIA A100 80GB PCIe; a CPU (AMD EPYC 7763)."
    )
    assert size_and_machines_sentence(run, {}) == "No row has a result yet. Requested: a100_80gb, size full."
    assert machine_in_words(results["xxl-sgd"]) == "a CPU (AMD EPYC 7763), 4 ranks"
    assert machine_in_words(results["xxl"]) == "2 x NVIDIA A100 80GB PCIe"


def test_data_of_the_user_causes_no_remark() -> None:
    for data in ("a.tar", "zips.tar"):
        run = make_run(rows=("baseline",), length="as-taught", weights="pretrained", data=data)
        results = {"baseline": make_result(run, "baseline", device=A100)}
        assert remarks(run, suite_named(run.suite), evaluation(**{"pass": 1}), results) == ()


@pytest.mark.parametrize(
    ("options", "remark"),
    [
        ({"weights": "random"}, "Random weights, data: captions. Losses depend on both."),
        ({"data": "synthetic"}, "Pretrained weights, data: synthetic. Losses depend on both."),
        ({"length": "verdict"}, "Each row ran only as many steps as its verdict needs."),
        ({"rows": ("baseline", "xxl", "xxl-sgd")}, "2 of 3 rows have no result."),
    ],
)
def test_each_option_that_differs_from_the_lab_causes_one_remark(options: dict[str, Any], remark: str) -> None:
    taught: dict[str, Any] = {"rows": ("baseline",), "length": "as-taught", "weights": "pretrained", "data": "captions"}
    run = make_run(**taught | options)
    results = {"baseline": make_result(run, "baseline", device=A100)}
    assert remarks(run, suite_named(run.suite), evaluation(**{"pass": 1}), results) == (remark,)


def test_a_remark_says_that_smaller_twins_of_rows_do_not_reproduce_the_numbers_of_the_lab() -> None:
    run = make_run(rows=("baseline",), card="h100_1g_12gb")
    results = {"baseline": make_result(run, "baseline")}
    (remark,) = (one for one in remarks(run, suite_named(run.suite), evaluation(), results) if "caled" in one)
    assert remark.startswith("Scaled to 12 GB: smaller models and batches than the lab's.")
    assert remark.endswith("The lab's own numbers are neither evaluated nor reproduced.")


@pytest.mark.parametrize(
    ("rows", "words"), [(1, "1 row ran on fewer ranks than it states"), (2, "2 rows ran on fewer ranks than they")]
)
def test_rows_on_fewer_ranks_are_counted(rows: int, words: str) -> None:
    names = ("7b-4gpu-ddp", "7b-4gpu-fsdp")[:rows]
    run = make_run(suite="multi_gpu_litgpt", rows=names, length="as-taught", weights="pretrained", data="/data")
    results = {row: make_result(run, row, device=A100) for row in names}
    fewer = {
        row: one.model_copy(
            update={
                "spec": one.spec.model_copy(update={"settings": one.spec.settings.model_copy(update={"devices": 2})})
            }
        )
        for row, one in results.items()
    }
    suite = suite_named(run.suite)
    of_suite = run.model_copy(update={"recipe_version": suite.version})
    assert remarks(of_suite, suite, evaluation(), results) == ()
    (remark,) = remarks(of_suite, suite, evaluation(), fewer)
    assert remark.startswith(words)


def test_remarks_name_missing_results_and_the_weights_data_input_and_suite_version() -> None:
    run = make_run(rows=("baseline", "xxl"), input="with-image", recipe_version=99)
    suite = suite_named(run.suite)
    text = " ".join(remarks(run, suite, evaluation(), {"baseline": make_result(run, "baseline")}))
    assert "1 of 2 rows has no result." in text
    assert "those of the actual GPU" in text
    assert "Random weights, data: synthetic." in text
    assert "version 99" in text
    assert "received the image" in text


def test_a_run_as_in_the_lab_has_no_remarks() -> None:
    run = make_run(rows=("baseline",), length="as-taught", weights="pretrained", data="/data/captions")
    results = {"baseline": make_result(run, "baseline", device=A100)}
    assert remarks(run, suite_named(run.suite), evaluation(**{"pass": 1}), results) == ()


def test_a_remark_on_a_miniature_says_which_statements_it_can_evaluate() -> None:
    run = make_run(size="tiny", rows=("baseline",))
    results = {"baseline": make_result(run, "baseline", device=PROCESSOR)}
    text = remarks(run, suite_named(run.suite), evaluation(**{"pass": 2, "not_evaluated": 3}), results)[0]
    assert "comparisons between rows" in text
    assert "2 of 5 statements have a verdict" in text


def test_numbers_are_rounded_and_have_units() -> None:
    assert [format_gib(78.6), format_gib(0.012345)] == ["78.60 GiB", "12.6 MiB"]
    assert [format_share(value) for value in (0.4567, 0.1, 0.0999, 0.0213)] == ["46 %", "10 %", "10.0 %", "2.1 %"]
    assert [format_percent(value) for value in (0.0041, -0.1, 0.0004, -0.0004)] == [
        "+0.4 %",
        "-10.0 %",
        "0.0 %",
        "0.0 %",
    ]
    assert [format_memory(gib) for gib in (1.0, -78.567, 0.99999, 0.1234)] == ["1.00", "-78.57", "1", "0.123"]
    assert format_memory(0.1234, 1024) == "126"


def test_the_stages_of_a_row_are_named_with_their_times() -> None:
    assert (
        format_stages(StageTimes(start_s=3.21, build_s=1.1, train_s=95, end_s=0.06))
        == "3.2 start, 1.1 build, 95.0 train, 0.1 end"
    )


def test_the_function_lower_first_changes_only_the_first_letter():
    assert [lower_first("The GPU is an A100"), lower_first("")] == ["the GPU is an A100", ""]
