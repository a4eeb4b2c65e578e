"""Rows and runs that are rejected before they start."""

import shutil
import sysconfig
from types import SimpleNamespace

import pytest

from experiments.errors import InputError
from experiments.runners import admission
from experiments.runners.admission import check_disk, host_memory_needed_gib, rejection_reason
from experiments.suites.cards import card_named
from experiments.system.files import GIB
from tests.support.runners.rows import GPU, OFFLOAD, T4, node, spec
from tests.support.training.tiny_rows import LORA

PARAMETERS = spec().base_model.parameters
A100_GIB = card_named("a100_80gb").memory_gib


def test_a_row_at_full_size_needs_a_gpu():
    assert "no GPU" in rejection_reason(spec(), node(), 64)
    assert rejection_reason(spec(size="tiny"), node(), 64) == ""


def test_a_device_smaller_than_the_card_is_rejected_with_both_sizes():
    assert rejection_reason(spec(), node(T4), 64) == "device NVIDIA T4 has 14.6 GiB, a100_80gb needs 79.2 GiB"
    assert rejection_reason(spec(), node(GPU), 64) == ""
    assert rejection_reason(spec(size="tiny"), node(T4), 64) == ""


def test_the_card_of_the_lab_is_accepted_however_much_memory_its_driver_reserves():
    reserved = GPU.__class__(0, "NVIDIA A100 80GB PCIe", 79.0, "GPU-2")
    assert rejection_reason(spec(), node(reserved), 64) == ""


@pytest.mark.parametrize(("memory_gib", "rejected"), [(79.1, False), (77.6, False), (77.5, True)])
def test_another_device_is_accepted_if_it_is_smaller_only_by_driver_memory(memory_gib, rejected):
    reserved = GPU.__class__(0, "NVIDIA H100 80GB HBM3", memory_gib, "GPU-2")
    assert bool(rejection_reason(spec(), node(reserved), 64)) == rejected


@pytest.mark.parametrize("settings", [{"optimizer": "adam_8bit"}, {"quantization": {"kind": "nf4"}}])
def test_a_version_of_bitsandbytes_that_needs_a_gpu_is_rejected_on_this_machine_if_it_has_no_gpu(settings, monkeypatch):
    row = spec(size="tiny", **settings)
    assert rejection_reason(row, node(), 64) == ""
    monkeypatch.setattr(admission, "versions", lambda: {"bitsandbytes": "0.44.1"})
    assert rejection_reason(row, node(), 64) == "bitsandbytes 0.44.1 needs a GPU; 0.50 and newer also run on CPUs"
    assert rejection_reason(row, node(), 64, is_local=False) == rejection_reason(row, node(GPU), 64) == ""
    assert rejection_reason(spec(size="tiny"), node(), 64) == ""


def test_a_row_on_the_cpu_needs_no_gpu_and_enough_host_memory():
    on_cpu = {"task": "generate", "accelerator": "cpu", "precision": "32-true"}
    row = spec(engine="hf_trainer", model="gpt-neo-1.3b", dataset="imdb", **on_cpu)
    needed_gib = host_memory_needed_gib(row)
    assert 1.2 * 4 * 1.3157 / 1.0738 < needed_gib < 8
    for machine in (node(), node(T4)):
        assert rejection_reason(row, machine, needed_gib + 1) == ""
        assert (
            rejection_reason(row, machine, 4)
            == f"the model on the CPU needs {needed_gib:.0f} GiB of host memory, the host has 4 GiB"
        )
    assert rejection_reason(row.model_copy(update={"size": "tiny"}), node(), 1) == ""


@pytest.mark.parametrize(("precision", "bytes_per_weight"), [("32-true", 4), ("bf16-true", 2), ("bf16-mixed", 4)])
def test_a_model_on_the_cpu_needs_host_memory_of_1_5_gib_and_1_2_times_its_weights(precision, bytes_per_weight):
    on_cpu = {"task": "generate", "accelerator": "cpu", "precision": precision}
    row = spec(engine="hf_trainer", model="gpt-neo-1.3b", dataset="imdb", **on_cpu)
    weights_gib = row.base_model.parameters * bytes_per_weight / 1024**3
    assert host_memory_needed_gib(row) == pytest.approx(1.5 + 1.2 * weights_gib, rel=1e-9)
    needed_gib = host_memory_needed_gib(row)
    assert rejection_reason(row, node(), needed_gib) == ""
    assert rejection_reason(row, node(), needed_gib - 0.01)


def test_a_rank_needs_8_gib_of_host_memory_and_a_rank_with_a_tiny_model_1_5_gib():
    assert [host_memory_needed_gib(spec(size=size)) for size in ("full", "tiny")] == [8.0, 1.5]
    assert host_memory_needed_gib(spec(size="tiny", **OFFLOAD)) == 1.5
    exact = spec(**OFFLOAD).base_model.parameters * 20 / 1024**3 + 10
    assert host_memory_needed_gib(spec(**OFFLOAD)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "needed_gib"),
    [
        ({}, 8.0),
        ({"optimizer": "adamw_cpu", "precision": "32-true"}, 10 + 2 * 4 * PARAMETERS / GIB),
        ({"optimizer": "adamw_cpu", "precision": "bf16-true"}, 10 + 2 * 2 * PARAMETERS / GIB),
        ({"activation_offload": True}, 10 + A100_GIB),
        ({"activation_offload": True, "optimizer": "adamw_cpu"}, 10 + 2 * 2 * PARAMETERS / GIB + A100_GIB),
    ],
)
def test_a_row_needs_host_memory_for_the_optimizer_state_and_activations_that_it_keeps_there(changes, needed_gib):
    assert host_memory_needed_gib(spec(**changes)) == pytest.approx(needed_gib, rel=1e-12)
    rejects = bool(rejection_reason(spec(**changes), node(GPU), needed_gib - 0.1))
    assert rejects == spec(**changes).settings.uses_host_memory == bool(changes)
    assert rejection_reason(spec(**changes), node(GPU), needed_gib) == ""


def test_a_row_with_an_offload_strategy_needs_host_memory_even_with_another_optimizer():
    row = spec()
    settings = row.settings.model_copy(update={"strategy": "deepspeed_stage_2_offload"})
    offloading = row.model_copy(update={"settings": settings})
    assert rejection_reason(offloading, node(GPU), 9).startswith("offload needs ")
    assert rejection_reason(row, node(GPU), 1) == ""


@pytest.mark.parametrize(("version", "runs"), [("0.49.2", False), ("0.50.0", True), ("1.0.0", True)])
def test_bitsandbytes_from_version_0_50_on_runs_on_a_cpu(monkeypatch, version, runs):
    monkeypatch.setattr(admission, "versions", lambda: {"bitsandbytes": version})
    assert (rejection_reason(spec(size="tiny", optimizer="adam_8bit"), node(), 64) == "") == runs
    assert rejection_reason(spec(size="tiny", optimizer="adam_8bit"), node(GPU), 64) == ""
    monkeypatch.setattr(admission, "versions", dict)
    assert rejection_reason(spec(size="tiny", optimizer="adam_8bit"), node(), 64) == ""


def test_missing_tools_on_this_machine_reject_only_rows_that_run_here(monkeypatch):
    monkeypatch.setattr(admission, "missing_build_tool", lambda: "C++ compiler (package g++)")
    offloading = spec(size="tiny", **OFFLOAD)
    assert "finds no C++ compiler" in rejection_reason(offloading, node(GPU), 64)
    assert rejection_reason(offloading, node(GPU), 64, is_local=False) == ""
    assert rejection_reason(spec(size="tiny"), node(GPU), 64) == ""


def test_every_gpu_has_to_be_large_enough():
    assert rejection_reason(spec(), node(GPU, T4), 64).startswith("device NVIDIA T4 has 14.6 GiB")


def test_more_devices_than_exist_are_rejected():
    remedy = "; --gpus-per-node runs the row on fewer"
    assert rejection_reason(spec(devices=2), node(GPU), 64) == "2 GPUs are needed, there is 1" + remedy
    assert rejection_reason(spec(devices=2), node(GPU, GPU), 64) == ""
    assert rejection_reason(spec(nodes=2, devices=2), node(GPU, GPU), 64) == "4 GPUs are needed, there are 2" + remedy
    assert rejection_reason(spec(nodes=2), node(GPU, GPU), 64) == ""


def test_a_row_of_several_nodes_needs_its_gpus_on_each_of_them():
    wide = spec(nodes=2, devices=2)
    assert rejection_reason(wide, node(GPU, GPU), 64, nodes=2) == ""
    assert rejection_reason(wide, node(GPU), 64, nodes=2).startswith(
        "2 GPUs on each of 2 nodes are needed, there is 1; "
    )
    assert rejection_reason(spec(nodes=3, devices=2), node(GPU, GPU), 64, nodes=2).startswith(
        "6 GPUs are needed, there are 2"
    )


def test_offload_needs_20_bytes_of_host_memory_per_parameter_and_10_gib():
    row = spec(**OFFLOAD)
    assert host_memory_needed_gib(row) == pytest.approx(12.23e9 * 20 / 1024**3 + 10, rel=0.001)
    assert rejection_reason(row, node(GPU), 200) == "offload needs 238 GiB of host memory, the host has 200 GiB"
    assert rejection_reason(row, node(GPU), 239) == ""
    assert rejection_reason(spec(size="tiny", **OFFLOAD), node(GPU), 8) == ""


def test_offload_needs_a_compiler_and_the_headers_of_python(monkeypatch):
    row = spec(size="tiny", **OFFLOAD)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    assert rejection_reason(row, node(), 8).endswith("finds no Python.h (package python3-dev)")
    assert rejection_reason(spec(size="tiny"), node(), 8) == ""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert rejection_reason(row, node(), 8).endswith("finds no C++ compiler (package g++)")


def test_each_rank_needs_its_own_host_memory():
    assert host_memory_needed_gib(spec(devices=4, strategy="ddp")) == 4 * host_memory_needed_gib(spec())
    alone, four = (host_memory_needed_gib(spec(**OFFLOAD, devices=devices)) for devices in (1, 4))
    assert four - alone == 3 * admission.OFFLOAD_SPARE_GIB


def test_a_run_without_disk_space_is_rejected(tmp_path, monkeypatch):
    check_disk(tmp_path / "not" / "yet", [spec()])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1024**3))
    with pytest.raises(InputError, match=r"not enough disk space: 1\.00 GiB are free, 1\.75 GiB are needed"):
        check_disk(tmp_path / "not" / "yet", [spec()] * 15)


def test_checkpoints_of_the_largest_row_need_disk_space_where_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20 * 1024**3))
    taught = {"engine": "hf_trainer", "model": "gpt-neo-1.3b", "length": "as-taught", "size": "full"}
    light = [spec(**taught | change) for change in ({"length": "verdict"}, {"size": "tiny"}, {"lora": LORA})]
    check_disk(tmp_path, light)
    check_disk(tmp_path, [spec(**taught)], is_local=False)
    with pytest.raises(InputError, match=r"20\.00 GiB are free, 30\.\d\d GiB are needed"):
        check_disk(tmp_path, [*light, spec(**taught)])


@pytest.mark.parametrize(("free_gib", "rows", "fits"), [(1.5, 10, True), (1.49, 10, False), (1.0, 0, True)])
def test_a_run_needs_one_gib_of_disk_space_and_a_little_for_each_row(tmp_path, monkeypatch, free_gib, rows, fits):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gib * 1024**3))
    if fits:
        check_disk(tmp_path, [spec()] * rows)
        return
    with pytest.raises(InputError):
        check_disk(tmp_path, [spec()] * rows)


def test_the_disk_has_space_for_two_checkpoints_of_twelve_bytes_per_parameter():
    row = spec(engine="hf_trainer", model="gpt-neo-1.3b", length="as-taught", size="full")
    assert admission.checkpoints_gib(row) == 2 * row.base_model.parameters * 12 / 1024**3
    assert admission.checkpoints_gib(spec(length="as-taught", size="full")) == 0
