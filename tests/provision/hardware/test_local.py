"""The description of this machine and of its GPUs."""

import pynvml
import pytest

from provision.errors import UnknownDevices
from provision.hardware import local
from provision.hardware.gpus import installed_gpus
from provision.hardware.host_memory import host_memory
from provision.models import Gpu

GPUS = (Gpu(0, "NVIDIA A", 80.0, "GPU-aa1"), Gpu(1, "NVIDIA A", 80.0, "GPU-bb2"), Gpu(2, "NVIDIA B", 40.0, "GPU-cc3"))


def test_this_machine_has_cores_memory_and_a_description_without_its_name(monkeypatch):
    monkeypatch.setattr(local, "installed_gpus", lambda: GPUS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    node = local.this_machine()
    assert node.cpus >= 1
    assert node.host_memory_gib == pytest.approx(host_memory().total / 1024**3)
    assert "2 x NVIDIA A, 1 x NVIDIA B" in node.description
    assert node.processor in node.description


def test_without_a_driver_no_gpu_is_found(monkeypatch):
    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert installed_gpus() == ()
    assert "no GPU" in local.this_machine().description


def test_the_memory_of_a_gpu_excludes_the_memory_of_the_driver(monkeypatch):
    class Memory:
        total, reserved, used = 80 * 1024**3, 1024**3 // 2, 0

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "NVIDIA A")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: "GPU-aa1")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle, version=None: Memory)
    assert installed_gpus() == (Gpu(0, "NVIDIA A", 79.5, "GPU-aa1"),)


@pytest.mark.parametrize(
    ("devices", "indices"),
    [(None, [0, 1, 2]), ("", []), ("-1", []), ("2,0", [2, 0]), ("GPU-bb", [1]), (" 1 ", [1])],
)
def test_only_gpus_in_cuda_visible_devices_are_selected(devices, indices):
    assert [gpu.index for gpu in local.select_visible(GPUS, devices)] == indices


def test_a_gpu_in_cuda_visible_devices_that_does_not_exist_is_an_error_that_names_it():
    with pytest.raises(UnknownDevices, match=r"unknown GPU '7'; allowed: 0 \(NVIDIA A\), 1 \(NVIDIA A\)"):
        local.select_visible(GPUS, "0,7")
    with pytest.raises(UnknownDevices, match="this machine has no GPU"):
        local.select_visible((), "0")
