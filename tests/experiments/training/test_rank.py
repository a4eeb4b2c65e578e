"""Tiny rows trained end to end in this process."""

import faulthandler
import signal
import sys
from functools import cache
from importlib.util import find_spec
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch

from experiments.errors import InputError
from experiments.results.schema import Failure, Measured, Progress
from experiments.suites.models import Model
from experiments.training import rank
from experiments.training.engines import lightning
from experiments.training.failures import PHASE_TEXTS
from experiments.training.measure.meters import StorageMeter
from tests.support.results.in_memory import CPU, EMULATING_GPU
from tests.support.training.tiny_rows import GIB, LLAMA, LORA, LORA_T5, NF4, T5, in_bytes, shots, spec

POINTS = ("before forward", "after forward", "after backward")
TEXT: dict[str, Any] = {"dataset": "alpaca2k", "train_samples": None, "max_length": 64, "max_steps": 2}
OWN = Model(
    family="transformers",
    architecture={
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
)
ROWS = {
    "plain": spec(max_steps=2),
    "accumulated": spec(accumulate=2, max_steps=2),
    "bf16-sgd-with-image": spec(precision="bf16-true", optimizer="sgd", input="with-image", max_steps=3),
    "bf16-sgd": spec(precision="bf16-true", optimizer="sgd", max_steps=3),
    "mixed-checkpointed": spec(precision="bf16-mixed", activation_checkpointing=True, max_steps=2),
    "mixed": spec(precision="bf16-mixed", max_steps=2),
    "adam-8bit": spec(model=T5, precision="bf16-true", optimizer="adam_8bit", max_steps=2),
    "lora": spec(precision="bf16-true", lora=LORA, save_model=True, max_steps=2),
    "qlora": spec(model=T5, lora=LORA_T5, quantization=NF4, max_steps=2),
    "text": spec(model=LLAMA, **TEXT),
    "text-own-model": spec(own=OWN, model="own", size="full", precision="bf16-true", **TEXT),
}
PLAIN_WEIGHTS = [name for name in ROWS if name != "qlora"]
FULLY_TUNED = [name for name in PLAIN_WEIGHTS if name != "lora"]


@pytest.fixture(scope="session")
def train_once(tmp_path_factory):
    """Return the result and the folder of a row of ROWS; each row is trained once."""

    @cache
    def run(name):
        out = tmp_path_factory.mktemp(name)
        return rank.run_rank(ROWS[name], out), out

    return run


def element_size(name):
    return 2 if ROWS[name].settings.precision == "bf16-true" else 4


@pytest.mark.parametrize("name", ROWS)
def test_a_row_fits_and_has_snapshots_at_every_point_of_its_first_steps(train_once, name):
    measured, _ = train_once(name)
    accumulate = ROWS[name].settings.accumulate
    expected = []
    for step, micro_step in product(range(2), range(accumulate)):
        expected += [(step, micro_step, point) for point in POINTS]
    for step in range(2):
        expected.insert((step + 1) * (3 * accumulate + 1) - 1, (step, accumulate - 1, "after optimizer step"))
    assert measured.outcome == "fits"
    assert measured.failure is None
    assert [(shot.step, shot.micro_step, shot.point) for shot in measured.memory.snapshots] == expected


@pytest.mark.parametrize("name", ROWS)
def test_the_parts_of_memory_add_up_to_the_allocated_memory_which_stays_below_the_peak(train_once, name):
    memory = train_once(name)[0].memory
    for shot in memory.snapshots:
        parts = shot.params_gib + shot.grads_gib + shot.optimizer_gib + shot.activations_gib
        assert parts == pytest.approx(shot.allocated_gib)
        assert min(shot.params_gib, shot.activations_gib) > 0
        assert shot.peak_gib >= shot.allocated_gib
        assert (shot.optimizer_cpu_gib, shot.reserved_gib) == (0, None)
    peaks = [shot.peak_gib for shot in memory.snapshots]
    assert peaks == sorted(peaks)
    assert memory.peak_gib == max(memory.peak_by_phase_gib.values()) >= peaks[-1]
    assert {"load", "forward", "backward", "optimizer step"} <= memory.peak_by_phase_gib.keys()
    assert memory.host_peak_gib > memory.peak_gib
    before, after = (shots(memory, point, "activations_gib") for point in ("before forward", "after forward"))
    assert all(kept > start for start, kept in zip(before, after, strict=True))


@pytest.mark.parametrize("name", PLAIN_WEIGHTS)
def test_the_memory_of_parameters_is_their_number_times_their_element_size(train_once, name):
    measured, _ = train_once(name)
    sizes = {in_bytes(shot.params_gib) for shot in measured.memory.snapshots}
    assert sizes == {measured.parameters * element_size(name)}


@pytest.mark.parametrize("name", PLAIN_WEIGHTS)
def test_gradients_take_as_much_memory_as_trainable_parameters_and_are_kept_after_the_step(train_once, name):
    measured, _ = train_once(name)
    expected = measured.trainable_parameters * element_size(name)
    assert set(shots(measured.memory, "after backward", "grads_gib")) == {expected}
    assert shots(measured.memory, "before forward", "grads_gib")[0] == 0
    assert set(shots(measured.memory, "after optimizer step", "grads_gib")) == {expected}


@pytest.mark.parametrize("name", ROWS)
def test_all_parameters_are_trained_unless_the_row_has_adapters(train_once, name):
    measured, _ = train_once(name)
    assert (measured.trainable_parameters == measured.parameters) == (name in FULLY_TUNED)
    assert measured.trainable_parameters > 0


@pytest.mark.parametrize("name", ["plain", "accumulated", "mixed", "lora", "qlora", "text"])
def test_the_state_of_adamw_is_two_values_per_parameter_and_a_step_count_per_tensor(train_once, name):
    measured, _ = train_once(name)
    values = 2 * measured.trainable_parameters * element_size(name)
    kept = shots(measured.memory, "after optimizer step", "optimizer_gib")
    assert len(set(kept)) == 1
    assert (kept[0] - values) % 4 == 0
    assert 4 <= kept[0] - values <= 4 * 200
    assert set(shots(measured.memory, "after backward", "optimizer_gib")[: ROWS[name].settings.accumulate]) == {0}


@pytest.mark.parametrize("name", ["bf16-sgd", "bf16-sgd-with-image"])
def test_sgd_has_no_optimizer_state(train_once, name):
    assert {shot.optimizer_gib for shot in train_once(name)[0].memory.snapshots} == {0}


def test_8_bit_adam_state_is_smaller_than_32_bit_state(train_once):
    measured, _ = train_once("adam-8bit")
    kept = shots(measured.memory, "after optimizer step", "optimizer_gib")
    assert 2 * measured.parameters < kept[0] == kept[1] < 2 * 4 * measured.parameters


def test_4_bit_weights_count_as_weights_and_take_less_memory(train_once):
    measured, _ = train_once("qlora")
    plain = train_once("adam-8bit")[0]
    assert measured.parameters == plain.parameters + measured.trainable_parameters
    assert max(shots(measured.memory, "before forward", "params_gib")) < 4 * measured.parameters * 0.7


@pytest.mark.parametrize("name", ROWS)
def test_steps_losses_and_speed_are_consistent(train_once, name):
    measured, _ = train_once(name)
    settings, speed = ROWS[name].settings, measured.speed
    assert speed.optimizer_steps == settings.max_steps
    assert speed.micro_steps == speed.planned_micro_steps == len(measured.losses)
    assert speed.micro_steps == settings.max_steps * settings.accumulate
    assert speed.samples_per_s * speed.step_s == pytest.approx(settings.batch_size * settings.accumulate)
    assert speed.step_s >= speed.micro_step_s * 0.99
    assert speed.train_s > speed.measured_micro_steps * 0.001
    assert speed.tflops_per_s == pytest.approx(speed.tflop_per_sample * speed.samples_per_s)
    assert speed.peak_share is None
    assert all(0 < loss < 20 for loss in measured.losses)


def test_accumulation_has_one_optimizer_step_per_group_of_micro_steps(train_once):
    memory = train_once("accumulated")[0].memory
    assert len(shots(memory, "after optimizer step", "optimizer_gib")) == 2
    assert len(shots(memory, "after backward", "grads_gib")) == 4


def test_image_placeholders_lengthen_the_input(train_once):
    assert train_once("bf16-sgd-with-image")[0].max_tokens == train_once("bf16-sgd")[0].max_tokens + 4
    assert train_once("bf16-sgd")[0].max_tokens <= 1 + 31


def test_activation_checkpointing_needs_less_memory_and_more_arithmetic_operations(train_once):
    plain, checkpointed = train_once("mixed")[0], train_once("mixed-checkpointed")[0]
    kept, fewer = (shots(one.memory, "after forward", "activations_gib") for one in (plain, checkpointed))
    assert all(less < 0.6 * more for less, more in zip(fewer, kept, strict=True))
    assert checkpointed.speed.tflop_per_sample > 1.1 * plain.speed.tflop_per_sample


def test_a_repeated_row_has_the_same_losses(train_once, tmp_path):
    assert rank.run_rank(ROWS["plain"], tmp_path).losses == train_once("plain")[0].losses


def test_saving_the_model_is_a_phase_with_a_memory_peak_of_its_own(train_once):
    measured, out = train_once("lora")
    assert (out / "model" / "adapter_config.json").exists()
    assert "save" in measured.memory.peak_by_phase_gib
    assert not (train_once("plain")[1] / "model").exists()


def test_progress_is_written_from_the_start_of_a_row(train_once):
    progress = Progress.model_validate_json((train_once("plain")[1] / "progress.json").read_bytes())
    assert progress.device == train_once("plain")[0].device
    assert progress.device.kind == "cpu"


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """Train a row at full length, and at length `verdict` with loader workers that prefetch."""
    row: dict[str, Any] = {"batch_size": 1, "train_samples": 20, "precision": "bf16-true"}
    full = rank.run_rank(spec(**row), tmp_path_factory.mktemp("full"))
    return full, rank.run_rank(spec(length="verdict", workers=1, **row), tmp_path_factory.mktemp("verdict"))


def test_a_run_with_length_verdict_is_shorter_and_reaches_the_same_peak(lengths):
    full, verdict = lengths
    assert full.speed.micro_steps == full.speed.planned_micro_steps == verdict.speed.planned_micro_steps == 20
    assert 6 <= verdict.speed.micro_steps <= 12
    assert verdict.max_tokens == full.max_tokens
    assert verdict.memory.peak_gib == pytest.approx(full.memory.peak_gib, rel=1e-3)


def test_a_run_with_length_verdict_has_its_peak_in_its_second_step(lengths):
    peak = {shot.step: shot.peak_gib for shot in lengths[1].memory.snapshots}
    assert peak[0] < 0.98 * peak[1]
    assert peak[1] == pytest.approx(lengths[1].memory.peak_gib, rel=1e-3)


def capacity_between(memory, step, point):
    """Return a capacity in bytes that suffices up to ``point`` of a step but not for what follows."""
    points = [(shot.step, shot.point) for shot in memory.snapshots]
    index = points.index((step, point))
    low, high = (snapshot.peak_gib for snapshot in memory.snapshots[index : index + 2])
    assert low < high
    return round((low + high) / 2 * GIB)


@pytest.mark.parametrize(
    ("step", "point", "phase", "snapshots"),
    [
        (0, "before forward", "forward", 1),
        (0, "after forward", "backward", 2),
        (0, "after backward", "optimizer step", 3),
        (1, "before forward", "forward", 5),
    ],
)
def test_out_of_memory_is_reported_with_its_position_and_earlier_measurements(
    train_once, tmp_path, step, point, phase, snapshots
):
    fitting = train_once("plain")[0].memory
    capacity = capacity_between(fitting, step, point)
    measured = rank.run_rank(ROWS["plain"], tmp_path, StorageMeter(capacity))
    failure, memory = measured.failure, measured.memory
    assert measured.outcome == "oom"
    assert (failure.phase, failure.step, failure.micro_step, failure.kind) == (phase, step, 0, "OutOfMemoryError")
    assert failure.requested_gib > 0
    assert memory.peak_gib * GIB <= capacity < (memory.peak_gib + failure.requested_gib) * GIB + 0.01 * 2**20
    assert [shot.allocated_gib for shot in memory.snapshots] == [
        pytest.approx(shot.allocated_gib, rel=1e-3) for shot in fitting.snapshots[:snapshots]
    ]
    assert f"out of GPU memory {PHASE_TEXTS[phase]} step {step} (counted from 0), " in measured.reason
    assert "more requested (peak so far " in measured.reason
    assert measured.speed is None
    assert len(measured.losses) == step + (phase != "forward")
    assert (measured.parameters, measured.device.kind) == (train_once("plain")[0].parameters, "cpu")


def test_out_of_memory_while_loading_is_an_outcome_with_its_peak(train_once, tmp_path):
    capacity = train_once("plain")[0].parameters * 4 // 2
    measured = rank.run_rank(ROWS["plain"], tmp_path, StorageMeter(capacity))
    assert (measured.outcome, measured.failure.phase) == ("oom", "load")
    assert measured.reason.startswith("out of GPU memory while loading, ")
    assert 0 < measured.memory.peak_gib * GIB <= capacity
    assert (measured.parameters, measured.speed, measured.losses, measured.memory.snapshots) == (None, None, (), ())


def test_a_failed_row_leaves_no_dispatch_mode_of_pytorch_active(train_once, tmp_path):
    train_once("plain")
    assert torch._C._len_torch_dispatch_stack() == 0
    capacity = capacity_between(train_once("plain")[0].memory, 0, "after forward")
    rank.run_rank(ROWS["plain"], tmp_path, StorageMeter(capacity))
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.parametrize(("requested", "outcome"), [("1.00 GiB", "error"), ("90.00 GiB", "oom")])
def test_a_row_that_finds_its_shared_gpu_full_has_an_error(monkeypatch, tmp_path, requested, outcome):
    def fail(spec, device):
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {requested}. GPU 0 has")

    monkeypatch.setattr(lightning, "build_model", fail)
    device = EMULATING_GPU.model_copy(update={"shared": True})
    measured = rank.run_rank(spec(), tmp_path, StorageMeter(), device)
    assert measured.outcome == outcome
    assert ("the shared GPU was full" in measured.reason) == (outcome == "error")
    assert ("the shared GPU was full" in measured.failure.message) == (outcome == "error")


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (RuntimeError("size mismatch\nfor layer 1"), "error", "RuntimeError while loading: size mismatch"),
        (KeyError("loss"), "error", "KeyError while loading: 'loss'"),
        (MemoryError(), "host_oom", "out of host memory while loading (peak so far 0 GiB)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."),
            "host_oom",
            "out of host memory while loading, 2 GiB more requested (peak so far 0 GiB)",
        ),
    ],
)
def test_every_failure_becomes_a_result_with_a_reason(monkeypatch, tmp_path, capfd, error, outcome, reason):
    def fail(spec, device):
        raise error

    monkeypatch.setattr(lightning, "build_model", fail)
    measured = rank.run_rank(spec(), tmp_path)
    message, _, place = measured.reason.partition(" (experiments/training/engines/lightning.py:")
    assert (measured.outcome, message) == (outcome, reason)
    assert ("in train, which called test_rank.py:" in place) == (outcome == "error")
    assert measured.failure.where.startswith("experiments/training/engines/lightning.py:")
    assert measured.failure.kind == type(error).__name__
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("changes", [{"batch_size": 16}, {"data": "/no/such/folder"}, {"strategy": "ddp"}])
def test_user_errors_are_raised_and_do_not_become_results(tmp_path, changes):
    with pytest.raises(InputError):
        rank.run_rank(spec(**changes), tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_that_stops_the_training_is_named(tmp_path, workers):
    names = [f"{number}.png" for number in range(4)]
    for name in names:
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *(f"{name},bread" for name in names)]))
    row = spec(data=str(tmp_path), train_samples=4, workers=workers, precision="bf16-true")
    with pytest.raises(InputError, match=r"\d\.png: the image cannot be read"):
        rank.run_rank(row, tmp_path)


@pytest.fixture
def written_spec(tmp_path):
    """A specification's file and its folder; restores the modules and the signal handler that main changes."""
    (tmp_path / "spec.json").write_text(spec().model_dump_json())
    with patch.dict(sys.modules):
        yield tmp_path / "spec.json", tmp_path
    faulthandler.unregister(signal.SIGUSR1)


def test_the_trainer_process_writes_its_measurements(monkeypatch, written_spec):
    path, out = written_spec
    measured = Measured(outcome="fits", reason="fits", device=CPU)
    monkeypatch.setattr(rank, "run_rank", lambda row, folder: {(spec(), out): measured}[row, folder])
    assert rank.main(str(path), str(out)) == 0
    assert Measured.model_validate_json((out / "measured.json").read_bytes()) == measured


@pytest.mark.parametrize(
    ("row", "hidden"),
    [
        (spec(lora=LORA), True),
        (spec(lora=LORA).model_copy(update={"weights": "pretrained"}), False),
        (spec(optimizer="adam_8bit"), False),
        (spec(model=T5, lora=LORA_T5, quantization=NF4), False),
    ],
    ids=["lora", "pretrained", "8-bit", "4-bit"],
)
def test_bitsandbytes_is_imported_only_for_rows_that_may_need_it(monkeypatch, written_spec, row, hidden):
    path, out = written_spec
    path.write_text(row.model_dump_json())
    found = []

    def run(row, folder):
        found.append(find_spec("bitsandbytes"))
        return Measured(outcome="fits", reason="fits", device=CPU)

    monkeypatch.setattr(rank, "run_rank", run)
    assert rank.main(str(path), str(out)) == 0
    assert (found == [None]) == hidden


def test_the_trainer_process_reports_a_failure_by_its_exit_code(monkeypatch, written_spec):
    path, out = written_spec
    failure = Failure(phase="forward", kind="OutOfMemoryError", message="m")
    measured = Measured(outcome="oom", reason="out of memory", failure=failure, device=CPU)
    monkeypatch.setattr(rank, "run_rank", lambda row, folder: measured)
    assert rank.main(str(path), str(out)) == 3
    assert (out / "measured.json").exists()


def test_the_trainer_process_reports_a_user_error_in_one_line(monkeypatch, written_spec, capfd):
    path, out = written_spec

    def reject(row, folder):
        raise InputError("captions: has 3 captioned images, the row trains on 512")

    monkeypatch.setattr(rank, "run_rank", reject)
    assert rank.main(str(path), str(out)) == 2
    assert capfd.readouterr().err == "captions: has 3 captioned images, the row trains on 512\n"
    assert not (out / "measured.json").exists()
