"""AMD GPUs, read from the kernel's files; tests.support.services.fake_amd writes them."""

import pynvml
import pytest

from experiments.runners.local import gpu_memory
from experiments.suites.cards import card_of_device
from provision.hardware import amd, gpus, local
from provision.models import Gpu
from tests.support.services.fake_amd import MEMORY, amd_files

FIRST, SECOND = "GPU-0000000000000001", "GPU-4b2c1a9f8d3e6f7a"


def raise_not_found():
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


@pytest.fixture
def amd_machine(tmp_path, monkeypatch):
    """Write the system files of an AMD GPU with two dies, in ROCm's order, on a machine without NVML."""
    for name in ("ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", raise_not_found)
    monkeypatch.setattr(amd, "SYS", amd_files(tmp_path))
    return monkeypatch


def test_each_die_of_an_amd_card_is_a_gpu_in_the_order_of_the_kernel_s_nodes(amd_machine):
    gib = MEMORY / 2**30
    assert gpus.installed_gpus() == (
        Gpu(0, "AMD Instinct MI250X", gib, FIRST),
        Gpu(1, "AMD Instinct MI250X", gib, SECOND),
    )
    assert card_of_device(gpus.installed_gpus()[0].name) == "mi250x_gcd_64gb"


@pytest.mark.parametrize(
    ("given", "uuids"),
    [("1", [SECOND]), ("1,0", [SECOND, FIRST]), (SECOND.upper().replace("GPU", "gpu"), [SECOND]), ("", []), ("7", [])],
)
def test_rocr_visible_devices_selects_and_renumbers_gpus(amd_machine, given, uuids):
    amd_machine.setenv("ROCR_VISIBLE_DEVICES", given)
    assert [(one.index, one.uuid) for one in local.this_machine().gpus] == list(enumerate(uuids))


def test_a_gpu_whose_files_cannot_be_read_is_left_out(amd_machine):
    amd_machine.setattr(type(amd.SYS), "read_text", unreadable(type(amd.SYS).read_text, "nodes/9/"))
    assert [one.uuid for one in amd.gpus()] == [SECOND]


def unreadable(read, part):
    def reads(path, *options):
        if part in str(path):
            raise PermissionError(1, "Operation not permitted")
        return read(path, *options)

    return reads


def test_visible_gpus_are_sampled_in_the_units_of_the_columns(amd_machine):
    amd_machine.setenv("CUDA_VISIBLE_DEVICES", "0")
    (watched,) = gpus.visible_gpus()
    assert watched.sample() == {
        "gpu_util_percent": 93.0,
        "gpu_memory_gib": 2.0,
        "gpu_power_w": 412.5,
        "gpu_sm_clock_mhz": 1700.0,
        "gpu_temperature_c": 61.0,
    }
    amd_machine.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [one.sample().get("gpu_power_w") for one in gpus.visible_gpus()] == [None, 412.5]


def test_memory_that_is_still_in_use_on_an_amd_gpu_is_found(amd_machine):
    assert gpus.used_gib([0, 1]) == {0: 2.0, 1: 1.0}
    assert gpu_memory.gpus_still_in_use({0: 2.0, 1: 0.5}, within_s=0) == {1: 1.0}


def test_the_driver_version_is_that_of_the_kernel_module_or_otherwise_of_linux(amd_machine, tmp_path):
    assert gpus.driver_version() == "amdgpu 6.3.6"
    (tmp_path / "module/amdgpu/version").unlink()
    assert gpus.driver_version().startswith("amdgpu of Linux ")


def test_a_machine_without_amd_gpus_has_no_gpus_and_no_driver_version(amd_machine, tmp_path):
    amd_machine.setattr(amd, "SYS", tmp_path / "nothing")
    assert gpus.installed_gpus() == ()
    assert gpus.driver_version() is None
    assert gpus.visible_gpus() == []
