"""The values that are read from a result, where they are derived from several of its fields."""

import pytest

from experiments.results.gpu_load import CPU_WAIT_INTERVAL
from experiments.results.memory_parts import PART_COLUMNS
from experiments.results.quantities import (
    QUANTITIES,
    STEP_QUANTITIES,
    TIME_QUANTITIES,
    is_lower_bound,
    value_of,
    values_of_ranks,
)
from experiments.results.schema import Failure, Snapshot, StepCounts
from tests.support.results.in_memory import CPU, GPU, ranks, result


@pytest.mark.parametrize(
    ("epochs", "losses", "fall"),
    [
        (2, (4.0, 4.0, 3.0, 1.0), 0.5),
        (2, (4.0, 3.0, 9.0), -1.25),
        (3, (4.0, 1.0, 1.0), 0.75),
        (3, (4.0, 1.0), None),
        (1, (4.0, 1.0), None),
    ],
)
def test_the_fall_of_the_loss_is_relative_to_the_mean_loss_of_the_first_epoch(epochs, losses, fall):
    settings = result("a").spec.settings.model_copy(update={"max_epochs": epochs})
    assert QUANTITIES["loss_fall"](result("a", losses=losses, settings=settings)) == fall


def test_the_final_loss_is_the_last_loss_if_there_are_fewer_losses_than_epochs():
    many = result("a").spec.settings.model_copy(update={"max_epochs": 9})
    made = result("a", losses=(3.0, 1.0), settings=many)
    assert (QUANTITIES["last_loss"](made), QUANTITIES["final_loss"](made)) == (1.0, 1.0)


@pytest.mark.parametrize(("accumulate", "early"), [(1, 3.0), (2, 2.5), (3, None)])
def test_the_early_loss_is_that_of_the_first_three_optimizer_steps(accumulate, early):
    settings = result("a").spec.settings.model_copy(update={"accumulate": accumulate})
    made = result("a", losses=(4.0, 3.0, 2.0, 2.0, 2.0, 2.0, 0.0), settings=settings)
    assert QUANTITIES["early_loss"](made) == early


def test_only_a_row_that_fits_has_a_share_of_the_peak_rate():
    assert QUANTITIES["mfu"](result("a", speed={"peak_share": 0.4})) == 0.4
    assert QUANTITIES["mfu"](result("a", "oom", speed={"peak_share": 0.4})) is None


def test_the_training_time_is_that_of_all_planned_micro_steps():
    speed: dict[str, float] = {"micro_steps": 12, "optimizer_steps": 3, "planned_micro_steps": 40}
    made = result("a", speed=speed)
    assert QUANTITIES["micro_steps_per_step"](made) == 4
    assert QUANTITIES["planned_micro_steps"](made) == 40
    assert QUANTITIES["train_s"](made) == 0.5 * 40 * 3 / 12
    none = result("a", speed={"optimizer_steps": 0})
    assert (QUANTITIES["micro_steps_per_step"](none), QUANTITIES["train_s"](none)) == (None, None)


def test_a_row_on_a_shared_gpu_has_counts_of_steps_and_no_times():
    counts = StepCounts(optimizer_steps=3, micro_steps=12, planned_micro_steps=40)
    made = result("a").model_copy(update={"steps": counts})
    assert {name: QUANTITIES[name](made) for name in (*STEP_QUANTITIES, *TIME_QUANTITIES)} == {
        "micro_steps_per_step": 4,
        "planned_micro_steps": 40,
        **dict.fromkeys(TIME_QUANTITIES),
    }


@pytest.mark.parametrize("quantity", ["step_s", "samples_per_s", "train_s"])
def test_only_a_row_that_fits_has_a_speed(quantity):
    assert QUANTITIES[quantity](result("a", speed={})) is not None
    for outcome in ("oom", "error", "timeout"):
        assert QUANTITIES[quantity](result("a", outcome, speed={})) is None


def test_waits_for_the_cpu_are_counted_in_each_step():
    made = result("a", speed={"step_s": 12.0}).model_copy(update={"telemetry": {CPU_WAIT_INTERVAL: 4.0}})
    assert QUANTITIES["cpu_waits_per_step"](made) == 3
    assert QUANTITIES["cpu_waits_per_step"](made.model_copy(update={"speed": None})) is None


def test_the_peak_of_a_rank_is_divided_by_the_memory_of_all_its_gpus():
    two = result("a").spec.settings.model_copy(update={"devices": 2, "task": "generate"})
    made = result("a", memory={"peak_gib": 30.0}, settings=two)
    per_rank = made.spec.settings.gpus_per_rank
    assert QUANTITIES["peak_share"](made) == pytest.approx(30.0 / (78.6 * per_rank))
    assert QUANTITIES["peak_share"](ranks(peak_gib=[30.0])[0]) == pytest.approx(30.0 / 78.6)
    assert QUANTITIES["peak_share"](result("a", memory={"peak_gib": 30.0}, device=CPU)) is None


def test_the_memory_of_the_gpu_is_zero_if_a_row_runs_on_a_cpu():
    for device, gib in ((GPU, 3.0), (CPU, 0.0)):
        assert QUANTITIES["gpu_peak_gib"](result("a", memory={"peak_gib": 3.0}, device=device)) == gib
    assert QUANTITIES["largest_gpu_params_gib"](result("a", memory={"params_by_gpu_gib": (2.0, 5.0)})) == 5.0


def test_only_a_row_that_ran_out_of_memory_has_the_quantity_oom_step():
    failure = Failure(phase="forward", step=1, kind="x", message="")
    assert QUANTITIES["oom_step"](result("a", "oom").model_copy(update={"failure": failure})) == 1
    assert QUANTITIES["oom_step"](result("a", "oom")) is None
    for outcome in ("fits", "host_oom", "rejected", "timeout"):
        assert QUANTITIES["oom_step"](result("a", outcome).model_copy(update={"failure": failure})) is None


@pytest.mark.parametrize(
    ("outcome", "predicted", "bounds"),
    [
        ("fits", False, set()),
        ("oom", False, {"peak_gib", "peak_share", "reserved_gib", "reserved_share"}),
        ("oom", True, {"reserved_gib", "reserved_share"}),
    ],
)
def test_the_peak_of_a_row_that_ran_out_of_memory_is_a_lower_bound(outcome, predicted, bounds):
    made = result("a", outcome).model_copy(update={"predicted": predicted})
    assert {quantity for quantity in QUANTITIES if is_lower_bound(quantity, made)} == bounds


def test_the_memory_of_a_row_is_the_maximum_over_its_ranks_and_its_loss_is_not_taken_from_ranks():
    several = result("a", ranks=ranks(peak_gib=[1.0, 3.0, 2.0]), losses=(2.0,))
    assert values_of_ranks("peak_gib", several) == [1.0, 3.0, 2.0]
    assert (value_of("peak_gib", several), value_of("final_loss", several)) == (3.0, 2.0)
    assert (values_of_ranks("peak_gib", result("a")), value_of("peak_gib", result("a"))) == ([], None)


def test_every_column_of_a_memory_part_is_a_field_of_a_snapshot():
    fields = {part.field for part in PART_COLUMNS}
    assert {"params_gib", "optimizer_cpu_gib"} <= fields <= {*Snapshot.model_fields, "buffers_gib"}
