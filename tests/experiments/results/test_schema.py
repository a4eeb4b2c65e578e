import json
from math import inf, isnan, nan

import pytest

from experiments.errors import InputError
from experiments.results.predictions import RowStepTime
from experiments.results.quantities import QUANTITIES
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Failure, Memory, read_result
from experiments.suites.settings import Settings
from experiments.system.files import write_atomically
from tests.support.results.in_memory import COMMON, CPU, EMULATING_GPU, GPU, ranks, result, run, shot
from tests.support.runners.fake_predictions import step_time

UNKNOWN = GPU.model_copy(update={"card": None, "memory_gib": 79.0})


def test_a_result_that_is_written_and_read_again_is_the_same(tmp_path):
    path = tmp_path / "result.json"
    written = result("a", memory={"peak_gib": 1.5}, speed={}, losses=(2.0, 1.0))
    write_atomically(path, written.model_dump_json())
    assert read_result(path) == written
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "former",
    [
        {"gpu_busy_share": "busy_share", "gpu_busy_share_error": "busy_error"},
        {"gpu_busy_share_error": "gpu_busy_error"},
    ],
)
def test_a_predicted_time_with_field_names_of_earlier_versions_is_read(former):
    time = step_time(2.0, gpu_share=0.75)
    stored = time.model_dump()
    earlier = {former.get(name, name): value for name, value in stored.items()}
    assert set(former.values()) <= earlier.keys()
    assert RowStepTime.model_validate(earlier) == RowStepTime.model_validate(stored) == time


def test_a_result_with_field_names_of_earlier_versions_is_read(tmp_path):
    path = tmp_path / "result.json"
    timestamps = {"started_at": 1.0, "began_at": 2.0, "ended_at": 3.0}
    written = result("a", "rejected", timestamps=timestamps, steady_interval_s=(1.0, 4.0)).model_dump_json()
    former = written
    earlier = {"rejected": "refused", "timestamps": "moments", "steady_interval_s": "steady_s"}
    for name, earlier_name in earlier.items():
        assert f'"{name}"' in former
        former = former.replace(f'"{name}"', f'"{earlier_name}"')
    write_atomically(path, former)
    assert read_result(path).model_dump_json() == written


def test_a_loss_that_is_nan_or_infinite_is_written_and_read_again_unchanged(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, result("a", losses=(2.0, nan, inf)).model_dump_json())
    two, none, endless = read_result(path).losses
    assert (two, isnan(none), endless) == (2.0, True, inf)
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_a_missing_result_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"result\.json: cannot be read \(No such file or directory\)$"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, r"\(schema_version: allowed: 1\)"),
        ({"outcome": "good"}, r"\(outcome: allowed: 'fits'.*\)"),
        ({"more": 1}, r"\(more: Extra inputs are not permitted\)"),
    ],
)
def test_an_invalid_result_is_rejected_with_its_first_error(tmp_path, change, words):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(result("a").model_dump_json()) | change))
    with pytest.raises(InputError, match=r"result\.json: not a result of schema version 1 " + words):
        read_result(path)


def test_an_incomplete_result_is_rejected(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(result("a").model_dump_json()[:100])
    with pytest.raises(InputError, match="not a result of schema version 1"):
        read_result(path)


def test_neither_the_card_itself_nor_a_cpu_emulates_the_card():
    assert not result("a").emulated
    assert not result("a", device=CPU).emulated
    assert result("a", device=EMULATING_GPU).emulated


SHOTS = (
    shot("before forward", params_gib=2.0, grads_gib=9.0, activations_gib=0.5),
    shot("after forward", params_gib=9.0, activations_gib=4.0, allocated_gib=6.0),
    shot("after forward", activations_gib=5.0, allocated_gib=8.0),
    shot("after forward", activations_gib=1.0, allocated_gib=20.0),
    shot("after backward", grads_gib=2.5, activations_gib=0.25),
    shot("after optimizer step", optimizer_gib=3.0, optimizer_cpu_gib=7.0),
)


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("params_gib", 2.0),
        ("grads_gib", 2.5),
        ("optimizer_gib", 3.0),
        ("optimizer_cpu_gib", 7.0),
        ("activations_before_forward_gib", 0.5),
        ("activations_gib", 5.0),
        ("activations_after_backward_gib", 0.25),
        ("allocated_after_forward_gib", 8.0),
        ("peak_gib", 21.0),
        ("reserved_gib", 22.0),
        ("samples_per_s", 4.0),
        ("step_s", 0.5),
        ("train_s", 5.0),
        ("final_loss", 2.0),
    ],
)
def test_a_quantity_is_read_at_the_point_of_the_step_for_which_it_is_defined(quantity, value):
    memory = {"peak_gib": 21.0, "reserved_gib": 22.0}
    assert QUANTITIES[quantity](result("a", memory=memory, shots=SHOTS, speed={}, losses=(3.0, 1.0))) == value


@pytest.mark.parametrize(("device", "whole"), [(GPU, 79.15 - 0.55), (EMULATING_GPU, 78.6), (UNKNOWN, 79.0)])
def test_the_used_share_of_a_card_is_relative_to_the_memory_that_the_row_may_use(device, whole):
    one = result("a", memory={"peak_gib": 30.0, "reserved_gib": 60.0}, device=device)
    assert QUANTITIES["peak_share"](one) == pytest.approx(30.0 / whole)
    assert QUANTITIES["reserved_share"](one) == pytest.approx(60.0 / whole)


def test_parameters_are_counted_in_billions():
    one = result("a").model_copy(update={"parameters": 3_744_761_856, "trainable_parameters": 18_874_368})
    assert QUANTITIES["parameters_e9"](one) == 3.744761856
    assert QUANTITIES["trainable_parameters_e9"](one) == 0.018874368


def test_the_samples_of_a_step_are_counted_over_all_ranks_and_micro_steps():
    several = {"batch_size": 2, "accumulate": 3, "devices": 4, "strategy": "ddp"}
    assert QUANTITIES["samples_per_step"](result("a", settings=Settings.model_validate(COMMON | several))) == 24
    assert QUANTITIES["samples_per_step"](ranks(peak_gib=[1.0])[0]) is None


@pytest.mark.parametrize(("on_a_gpu", "processes"), [(1, 4), (2, 8)])
def test_the_number_of_processes_is_the_number_on_one_gpu_times_the_number_of_gpus(on_a_gpu, processes):
    device = GPU.model_copy(update={"count": 4})
    load = {"gpu_processes_max": on_a_gpu, "gpu_util_percent_max": 97.0}
    one = result("a", device=device).model_copy(update={"telemetry": load})
    assert QUANTITIES["gpu_processes"](one) == processes
    assert QUANTITIES["gpu_util_peak_percent"](one) == 97.0


def test_only_a_row_that_ran_out_of_memory_has_a_step_of_failure():
    failure = Failure(phase="forward", step=1, kind="OutOfMemoryError", message="")
    ended = {outcome: result("a", outcome).model_copy(update={"failure": failure}) for outcome in ("oom", "error")}
    assert {outcome: QUANTITIES["oom_step"](one) for outcome, one in ended.items()} == {"oom": 1, "error": None}


@pytest.mark.parametrize(
    ("changes", "loss"),
    [({"max_epochs": 2}, 1.5), ({"max_epochs": 1}, 3.75), ({"max_epochs": 2, "max_steps": 4}, 3.75)],
)
def test_the_loss_of_an_epoch_is_its_mean(changes, loss):
    settings = result("a").spec.settings.model_copy(update=changes)
    assert QUANTITIES["final_loss"](result("a", losses=(7.0, 5.0, 2.0, 1.0), settings=settings)) == loss


def test_the_final_loss_of_a_shortened_training_is_the_mean_of_all_losses():
    settings = result("a").spec.settings.model_copy(update={"max_epochs": 2})
    assert QUANTITIES["final_loss"](result("a", losses=(3.0, 1.0), settings=settings, length="verdict")) == 2.0


@pytest.mark.parametrize("micro_steps", [40, 400])
def test_the_training_time_excludes_the_warm_up(micro_steps):
    steps = {"optimizer_steps": micro_steps // 4, "micro_steps": micro_steps, "planned_micro_steps": 400}
    one = result("a", speed={**steps, "step_s": 0.5, "train_s": 99.0})
    assert QUANTITIES["train_s"](one) == 50.0


@pytest.mark.parametrize("quantity", list(QUANTITIES))
def test_a_value_that_was_not_measured_is_none(quantity):
    empty = result("a", "oom")
    assert empty.memory == Memory()
    assert (QUANTITIES[quantity](empty) is None) == (quantity != "samples_per_step")


def test_a_run_folder_returns_its_results_in_the_requested_order(tmp_path):
    folder = RunFolder(tmp_path / "results" / "one")
    folder.write_run(run("b", "a", "c"))
    for row in ("a", "b"):
        folder.row_folder_named(row).mkdir(parents=True)
        write_atomically(folder.row_folder_named(row) / "result.json", result(row).model_dump_json())
    assert list(folder.results()) == ["b", "a"]
    assert folder.read_run() == run("b", "a", "c")


def test_a_folder_without_a_run_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"not a run's folder \(it has no run\.json\)$"):
        RunFolder(tmp_path).read_run()
    with pytest.raises(InputError, match=r"\(it has no run\.json\); `testbed run` creates one$"):
        RunFolder(tmp_path / "latest").read_run()


def test_the_error_for_a_folder_without_a_run_lists_the_runs_in_it_or_next_to_it(tmp_path):
    for number in range(7):
        RunFolder(tmp_path / f"run-{number}").write_run(run())
    (tmp_path / "link").symlink_to("run-1")
    names = f"; runs in {tmp_path}: run-0, run-1, run-2, run-3, run-4 and 2 more"
    for path in (tmp_path, tmp_path / "latest"):
        with pytest.raises(InputError) as error:
            RunFolder(path).read_run()
        assert str(error.value) == f"{path}: not a run's folder (it has no run.json){names}"


def test_a_run_of_another_schema_is_rejected(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(json.loads(run().model_dump_json()) | {"schema_version": 2}))
    with pytest.raises(
        InputError, match=r"run\.json: not a run of schema version 1 \(allowed: 1\); restore the file, or run"
    ):
        RunFolder(tmp_path).read_run()


def test_memory_after_the_forward_pass_is_averaged_over_steps_with_optimizer_state():
    first = shot("after forward", step=0, allocated_gib=2.0)
    later = tuple(shot("after forward", step=1, allocated_gib=gib) for gib in (6.0, 8.0))
    assert QUANTITIES["allocated_after_forward_gib"](result("a", shots=(first, *later))) == 7.0
    assert QUANTITIES["allocated_after_forward_gib"](result("a", shots=(first,))) == 2.0
