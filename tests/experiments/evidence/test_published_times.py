"""Published times of training steps: each has its data, the stored table is current, and faults change it."""

import json
from functools import partial

import pytest

from experiments.prediction.times import limits, phase
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import HOST_FACTORS, RecordedPhase
from tests.benchmarks.prediction.published import FOLDER
from tests.benchmarks.prediction.published_times.__main__ import ERRORS, OURS, summarize, table
from tests.benchmarks.prediction.published_times.allocation import ONE_CONSTANT, TWO_CONSTANTS, AllocationCost
from tests.benchmarks.prediction.published_times.labels import (
    PASSES,
    TrainingOperations,
    published_times,
    read_operations,
)
from tests.benchmarks.prediction.published_times.linear_layers import as_timed, layer_key, without_bias
from tests.benchmarks.prediction.published_times.predict import (
    Comparison,
    Pass,
    compare_labels,
    fitted_cost,
    leave_one_out,
    mean_error,
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
        assert one.reserved_gib > one.allocated_gib["forward"] > one.allocated_gib["backward"]
        assert sum(one.phases["backward"].values()) > sum(one.phases["forward"].values()) > 500


def test_the_source_s_peak_rates_replace_those_of_the_catalog_and_nothing_else():
    card = TIMES.card("v100_32gb")
    assert (card.peak_tflops["fp32"], card.bandwidth_gb_s) == (14.0, 900)
    assert TIMES.card("a100_80gb").bandwidth_gb_s == 1935


def test_the_stored_table_is_current():
    found = summarize(TIMES, compare_labels(TIMES, read_operations()))
    assert (FOLDER / "times.md").read_text() == table(TIMES, found)
    assert json.loads((FOLDER / "times.json").read_text()) == json.loads(json.dumps(found))


def test_all_accuracy_goals_are_reached_but_that_of_the_a100_only_with_two_constants(before):
    everywhere = {(card, name) for card in ("h100_80gb", "v100_32gb") for name in OURS}
    assert goals_reached(before) == everywhere | {("a100_80gb", "clearing_error")}
    assert before["a100_80gb"]["backward_error"] < before["a100_80gb"]["goal"]


def test_without_the_time_to_clear_memory_the_goal_of_the_a100_is_missed(before, monkeypatch):
    monkeypatch.setattr(TrainingOperations, "uncleared_gib", lambda *_: 0.0)
    assert goals_reached(before) - goals_reached(predicted_means()) == {("a100_80gb", "clearing_error")}


def test_with_the_bias_of_linear_layers_the_goal_of_the_v100_is_missed_and_the_errors_of_the_h100_rise(
    before, monkeypatch
):
    monkeypatch.setattr("tests.benchmarks.prediction.published_times.predict.as_timed", lambda recorded: recorded)
    after = predicted_means()
    assert goals_reached(before) - goals_reached(after) >= {("v100_32gb", name) for name in OURS}
    assert after["h100_80gb"]["error"] > before["h100_80gb"]["error"]


def test_linear_layers_measured_by_the_source_are_predicted_better_without_a_bias():
    layers = summarize(TIMES, compare_labels(TIMES, read_operations()))["linear_layers"]
    assert {one["card"] for one in layers} == {"h100_80gb"}
    assert mean_error(one["none_error"] for one in layers) < 0.25 * mean_error(one["bias_error"] for one in layers)


def test_products_with_a_bias_are_replaced_by_products_without_a_bias_and_other_operations_are_kept():
    layer = TIMES.linear_layers[0]
    key = layer_key(layer)
    product, other = without_bias(key), '["aten::relu.default",{"type":"Float","sizes":[2]}]'
    assert parse(product).product_sizes == parse(key).product_sizes == (layer.rows, layer.columns, layer.depth, 1)
    assert parse(product).name == "aten::mm.out"
    counts = as_timed(RecordedPhase("forward", 0, {key: 3, product: 2, other: 1})).operations
    assert counts == {product: 5, other: 1}


def test_the_operation_of_each_published_linear_layer_was_recorded_in_a_training():
    recorded = {key for one in read_operations().values() for key in one.phases["forward"]}
    assert {layer_key(layer) for layer in TIMES.linear_layers} <= recorded


def test_the_rest_of_a_forward_pass_is_its_measured_time_minus_the_time_of_its_operations():
    found = summarize(TIMES, compare_labels(TIMES, read_operations()))["forward_operations"]
    rest_ms = {(one["card"], one["training"]): 1000 * one["rest_s"] for one in found}
    layers = {(one.card, one.training): one for one in TIMES.forward_operations}["a100_80gb", "opt_13-2048-2"]
    assert layers.total_ms == pytest.approx(24 * sum(layers.layer_ms) + sum(layers.head_ms))
    assert rest_ms["a100_80gb", "opt_13-2048-2"] == pytest.approx(1335.299 - layers.total_ms)
    assert abs(rest_ms["a100_80gb", "opt_13-2048-1"]) < 10 < 100 < rest_ms["a100_80gb", "bert_large-512-8"]


def test_memory_has_to_be_cleared_only_if_the_unreserved_memory_of_the_card_is_too_small():
    training = TrainingOperations(
        training="", model="", phases={}, allocated_gib={"forward": 30.0, "backward": 1.0}, reserved_gib=40.0
    )
    card = TIMES.card("a100_80gb")
    assert training.uncleared_gib(card) == 0.0
    fuller = training.model_copy(update={"reserved_gib": 60.0})
    assert fuller.uncleared_gib(card) == pytest.approx(90.0 + card.context_gib - card.memory_gib)


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


def comparison(measured_s: float, gpu_s: float, host_s: float, allocated_gib: float, uncleared_gib: float = 0.0):
    one = Pass(measured_s, gpu_s, host_s, allocated_gib, uncleared_gib, gpu_s / 2)
    return Comparison(TIMES.labels[0], (one,))


def test_the_time_of_a_pass_is_the_longer_of_the_host_time_with_allocations_and_the_gpu_time():
    one = comparison(1.0, gpu_s=0.5, host_s=0.2, allocated_gib=10.0, uncleared_gib=5.0).passes[0]
    costs = [AllocationCost(), AllocationCost(0.03), AllocationCost(0.05), AllocationCost(0.05, 0.02)]
    assert [one.predicted_s(cost) for cost in costs] == pytest.approx([0.5, 0.5, 0.7, 0.8])


def test_leave_one_out_uses_the_constants_that_are_fitted_to_all_other_published_times():
    slow = [comparison(0.2 + 0.02 * gib, 0.1, 0.2, gib) for gib in (10.0, 20.0, 30.0)]
    fast = comparison(0.1, 0.1, 0.05, 10.0)
    full = [comparison(0.2 + 0.02 * gib + 0.01 * 5, 0.1, 0.2, gib, 5.0) for gib in (10.0, 20.0)]
    assert leave_one_out(partial(fitted_cost, ONE_CONSTANT), [*slow, fast])[-1] == (pytest.approx(0.02), 0.0)
    assert leave_one_out(partial(fitted_cost, TWO_CONSTANTS), [*slow, *full, fast])[-1] == pytest.approx((0.02, 0.01))
    assert leave_one_out(lambda others: float(len(others)), slow) == [2.0, 2.0, 2.0]
