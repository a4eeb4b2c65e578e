"""Published times of training steps: each has its data, the stored table is current, and faults change it."""

import json

import pytest

from experiments.prediction.times import limits, phase
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import HOST_FACTORS, PhaseTime
from tests.benchmarks.prediction.published import FOLDER
from tests.benchmarks.prediction.published_times.__main__ import ERRORS, summarize, table
from tests.benchmarks.prediction.published_times.labels import PASSES, published_times, read_operations
from tests.benchmarks.prediction.published_times.predict import (
    Comparison,
    Pass,
    compare_labels,
    fitted_allocation_s,
    leave_one_out,
)

TIMES = published_times()


def predicted_means() -> dict[str, dict[str, float]]:
    """Return the mean errors by card."""
    return summarize(TIMES, compare_labels(TIMES, read_operations()))["means"]


def goals_reached(means) -> set[tuple[str, str]]:
    """Return the cards and estimates whose goal is reached."""
    return {(card, name) for card, one in means.items() for name, reached in one["reached"].items() if reached}


@pytest.fixture(scope="module")
def before() -> dict[str, dict[str, float]]:
    """Return the mean errors without a fault."""
    return predicted_means()


def test_every_published_time_names_a_card_and_a_model_and_its_training_was_recorded():
    operations = read_operations()
    assert len(TIMES.labels) == 26
    assert {label.card for label in TIMES.labels} == set(TIMES.cards)
    assert {label.model for label in TIMES.labels} == set(TIMES.models)
    assert {label.training for label in TIMES.predicted} == set(operations)
    for one in operations.values():
        assert set(one.phases) == set(one.allocated_gib) == set(PASSES)
        assert sum(one.phases["backward"].values()) > sum(one.phases["forward"].values()) > 500


def test_the_source_s_peak_rates_replace_those_of_the_catalog_and_nothing_else():
    card = TIMES.card("v100_32gb")
    assert (card.peak_tflops["fp32"], card.bandwidth_gb_s) == (14.0, 900)
    assert TIMES.card("a100_80gb").bandwidth_gb_s == 1935


def test_the_stored_table_is_current():
    found = summarize(TIMES, compare_labels(TIMES, read_operations()))
    assert (FOLDER / "times.md").read_text() == table(TIMES, found)
    assert json.loads((FOLDER / "times.json").read_text()) == json.loads(json.dumps(found))


def test_the_accuracy_goal_is_reached_on_the_h100_and_in_backward_passes_on_the_a100(before):
    assert goals_reached(before) == {("h100_80gb", "error"), ("h100_80gb", "allocation_error")}
    assert before["a100_80gb"]["backward_error"] < before["a100_80gb"]["goal"]


@pytest.mark.parametrize(("card", "factor"), [("a100_80gb", 2.0), ("h100_80gb", 0.5)])
def test_a_wrong_bandwidth_raises_the_error_of_its_card(card, factor, before, monkeypatch):
    change_bandwidth(card, factor, monkeypatch)
    assert predicted_means()[card]["error"] > before[card]["error"]


@pytest.mark.parametrize(("card", "name"), [("a100_80gb", "backward_error"), ("h100_80gb", "allocation_error")])
def test_with_a_quarter_of_the_bandwidth_an_accuracy_goal_is_missed(card, name, before, monkeypatch):
    change_bandwidth(card, 0.25, monkeypatch)
    assert before[card][name] < before[card]["goal"] < predicted_means()[card][name]


def change_bandwidth(card, factor, monkeypatch):
    unchanged, changed = limits.memory_access_s, TIMES.card(card).name
    monkeypatch.setattr(
        limits,
        "memory_access_s",
        lambda operation, one: unchanged(operation, one) / (factor if one.name == changed else 1.0),
    )


@pytest.mark.parametrize("family", ["matrix products", "element-wise", "reductions", "copies"])
def test_errors_change_without_a_family_of_operations_and_without_a_large_family_a_goal_is_missed(
    family, before, monkeypatch
):
    complete = phase.phase_time

    def incomplete(recorded, *arguments):
        kept = {key: count for key, count in recorded.operations.items() if parse(key).family != family}
        return complete(recorded._replace(operations=kept), *arguments)

    monkeypatch.setattr("tests.benchmarks.prediction.published_times.predict.phase_time", incomplete)
    after = predicted_means()
    assert all(after[card]["error"] != before[card]["error"] for card in TIMES.cards)
    if family in ("matrix products", "element-wise"):
        assert goals_reached(before) - goals_reached(after)


def test_with_a_host_twice_as_slow_an_accuracy_goal_is_missed(before, monkeypatch):
    for name, factor in HOST_FACTORS.items():
        monkeypatch.setitem(HOST_FACTORS, name, 2 * factor)
    assert ("h100_80gb", "error") in goals_reached(before) - goals_reached(predicted_means())


def test_errors_that_the_source_states_are_copied_and_not_computed():
    labels = {(label.card, label.training): label.neusight_percent for label in TIMES.labels}
    for one in json.loads((FOLDER / "times.json").read_text())["labels"]:
        assert one["neusight_error"] == labels[one["card"], one["training"]] / 100
        assert set(ERRORS) <= set(one)


def comparison(measured_s: float, busy_s: float, host_s: float, allocated_gib: float) -> Comparison:
    time = PhaseTime({"forward": host_s / HOST_FACTORS["forward"]}, {"matrix products": busy_s})
    return Comparison(TIMES.labels[0], (Pass(measured_s, time, allocated_gib, busy_s / 2),))


def test_the_time_of_a_pass_is_the_longer_of_the_host_time_with_allocations_and_the_gpu_time():
    one = comparison(measured_s=1.0, busy_s=0.5, host_s=0.2, allocated_gib=10.0)
    assert [one.passes[0].predicted_s(each) for each in (0.0, 0.03, 0.05)] == pytest.approx([0.5, 0.5, 0.7])


def test_leave_one_out_uses_the_constant_that_is_fitted_to_all_other_published_times():
    slow = [comparison(0.2 + 0.02 * gib, 0.1, 0.2, gib) for gib in (10.0, 20.0, 30.0)]
    fast = comparison(0.1, 0.1, 0.05, 10.0)
    assert leave_one_out(fitted_allocation_s, [*slow, fast])[-1] == pytest.approx(0.02)
    assert leave_one_out(lambda others: float(len(others)), slow) == [2.0, 2.0, 2.0]
