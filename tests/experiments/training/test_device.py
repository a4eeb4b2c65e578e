import platform
import shutil
import sysconfig
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.errors import InputError
from experiments.results.schema import SHARED_GPU_VARIABLE
from experiments.suites.cards import card_named
from experiments.training import device
from experiments.training.device import memory_cap_gib, open_device, require_c_compiler
from provision.hardware import amd, gpus
from provision.hardware.local import processor_name
from tests.support.results.in_memory import CARD
from tests.support.services.fake_amd import MEMORY, amd_files
from tests.support.training.tiny_rows import GIB, spec

A100 = card_named(CARD)


@pytest.mark.parametrize("share", [0.985, 1.0, 1.015])
def test_the_card_of_the_lab_needs_no_memory_cap(share):
    assert memory_cap_gib(A100, A100.memory_gib * share) is None


@pytest.mark.parametrize("total_gib", [A100.memory_gib * 1.03, 139.8])
def test_a_larger_device_is_capped_to_the_usable_memory_of_the_card(total_gib):
    assert memory_cap_gib(A100, total_gib) == A100.usable_gib == A100.memory_gib - A100.context_gib


def test_a_smaller_device_is_rejected():
    with pytest.raises(InputError, match=r"^the device has 39\.5 GiB, NVIDIA A100 80GB needs 79\.2 GiB$"):
        memory_cap_gib(A100, 39.49)


@pytest.mark.parametrize(("size", "total_gib", "cap"), [("full", 139.8, 78.6), ("full", 79.2, None), ("tiny", 8, None)])
def test_the_memory_cap_is_set_in_the_allocator(monkeypatch, size, total_gib, cap):
    fractions = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: fractions.append(share))
    assert device._emulate(spec(size=size), total_gib) == pytest.approx(cap)
    assert fractions == ([] if cap is None else [pytest.approx(cap / total_gib)])


@pytest.mark.parametrize(
    ("card", "precision", "kernels"),
    [
        ("v100_32gb", "bf16-true", (False, False, False)),
        ("v100_32gb", "bf16-mixed", (False, False, False)),
        ("v100_32gb", "32-true", (False, True, False)),
        ("a100_80gb", "bf16-true", (True, True, False)),
        ("h100_94gb", "bf16-true", (True, True, True)),
    ],
)
def test_an_emulated_card_uses_its_own_attention_kernels(monkeypatch, card, precision, kernels):
    allowed = {}
    for name in ("flash", "mem_efficient", "cudnn"):
        monkeypatch.setattr(torch.backends.cuda, f"enable_{name}_sdp", lambda on, name=name: allowed.update({name: on}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: None)
    device._emulate(spec(size="full", card=card, precision=precision), 139.8)
    assert tuple(allowed.values()) == kernels
    allowed.clear()
    device._emulate(spec(size="full", card=card, precision=precision), card_named(card).memory_gib)
    assert tuple(allowed.values()) == kernels, "a device of the same size may be another card"
    allowed.clear()
    device._emulate(spec(size="tiny", card=card, precision=precision), 139.8)
    assert allowed == {}


def test_a_row_on_the_cpu_opens_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("opened a GPU"))
    row = spec(size="tiny", engine="hf_trainer", model="gpt-neo-1.3b", task="generate", accelerator="cpu")
    assert device.open_device(row).kind == "cpu"


def test_every_gpu_of_a_process_gets_the_memory_cap(monkeypatch):
    capped = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: capped.append(gpu))
    device._emulate(spec(size="full", task="generate", devices=3), 139.8)
    monkeypatch.setenv("LOCAL_RANK", "1")
    device._emulate(spec(size="full", strategy="ddp", devices=3), 139.8)
    assert capped == [0, 1, 2, 1]


def test_a_row_on_a_cpu_gets_one_thread(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(2)
    opened = open_device(spec())
    assert torch.get_num_threads() == 1
    assert (opened.kind, opened.name, opened.memory_gib, opened.card) == ("cpu", processor_name(), None, None)
    assert opened.host_cpus >= 1
    assert opened.host_memory_gib > 0.5


@pytest.mark.parametrize(("rank", "number"), [(None, 0), ("3", 3)])
def test_a_rank_uses_the_gpu_of_its_local_rank(monkeypatch, rank, number):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    selected: list[Any] = []

    def properties(index):
        return SimpleNamespace(name=f"GPU {index}", total_memory=80 * GIB, major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: selected[-1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(gpus, "driver_version", lambda: "none")
    row = spec(devices=4, strategy="ddp") if rank else spec()
    opened = open_device(row)
    assert (opened.name, opened.shared) == (f"GPU {number}", False)
    monkeypatch.setenv(SHARED_GPU_VARIABLE, "1")
    assert open_device(row).shared


def test_the_cpu_is_named_as_in_proc_cpuinfo():
    with open("/proc/cpuinfo") as lines:
        known = [line for line in lines if line.startswith("model name")]
    assert processor_name() in (known[0] if known else platform.machine())
    assert processor_name()


def test_an_amd_gpu_is_recognized_as_its_card(tmp_path, monkeypatch):
    properties = SimpleNamespace(
        name="AMD Instinct MI250X", total_memory=MEMORY, major=9, minor=0, gcnArchName="gfx90a:sramecc+:xnack-"
    )
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(amd, "SYS", amd_files(tmp_path))
    monkeypatch.setattr(torch.version, "hip", "6.2.41134")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    opened = open_device(spec(size="full", card="mi250x_gcd_64gb"))
    assert (opened.card, opened.cap_gib) == ("mi250x_gcd_64gb", None)
    assert (opened.driver, opened.cuda, opened.compute_capability) == ("amdgpu 6.3.6", "ROCm 6.2.41134", "gfx90a")


@pytest.mark.parametrize(
    ("environment", "programs", "words"),
    [
        (None, (), r"^compile = True: found no C compiler, .*; allowed: gcc or clang in PATH, or the environment"),
        ("missing-cc -O2", ("gcc",), "found no program CC=missing-cc -O2, which Triton needs"),
        (None, ("clang",), None),
        ("zig cc", ("zig",), None),
    ],
)
def test_a_missing_compiler_is_named(monkeypatch, tmp_path, environment, programs, words):
    monkeypatch.delenv("CC", raising=False)
    if environment:
        monkeypatch.setenv("CC", environment)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    if words is None:
        require_c_compiler()
        return
    with pytest.raises(InputError, match=words):
        require_c_compiler()


def test_missing_headers_of_python_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path}/Python.h is missing, which Triton needs"):
        require_c_compiler()


def test_a_gpu_is_opened_for_a_compiled_row_only_with_a_compiler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "require_c_compiler", lambda: (_ for _ in ()).throw(InputError("no compiler")))
    with pytest.raises(InputError, match="no compiler"):
        device.open_device(spec(compile=True))
