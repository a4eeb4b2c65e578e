"""NVIDIA GPUs, read through NVML. Call ``start_nvml`` first and ``stop_nvml`` at the end."""

import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from provision.models import GIB, Gpu


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU by its NVML handle."""

    handle: Any

    @property
    def used_gib(self) -> float:
        """Memory in use by all processes, GiB."""
        return float(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used / GIB)

    @property
    def index(self) -> int:
        """Number of the GPU, in the order of the PCI bus."""
        return int(pynvml.nvmlDeviceGetIndex(self.handle))

    def pids(self) -> set[int]:
        """Return the ids of the processes that compute on the GPU."""
        return {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}

    def process_gib(self) -> dict[int, float]:
        """Return the memory of each process that computes on the GPU, CUDA context included, GiB, by process id.

        Processes whose memory NVML does not report are left out; on some virtual GPUs, these are all processes. In a
        container, NVML may report process ids that differ from those in the container.
        """
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except pynvml.NVMLError:
            return {}
        return {process.pid: process.usedGpuMemory / GIB for process in processes if process.usedGpuMemory}

    def utilization(self) -> float:
        """Return the load of the GPU in percent."""
        return float(pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu)

    def sample(self) -> dict[str, float]:
        """Return load (percent), memory (GiB), power (W), clock (MHz), temperature (C) and number of processes.

        Values that the GPU does not report are left out.
        """
        readers: dict[str, Callable[[], float]] = {
            "gpu_util_percent": self.utilization,
            "gpu_memory_gib": lambda: self.used_gib,
            "gpu_power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1000,
            "gpu_sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM),
            "gpu_temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(self.handle, pynvml.NVML_TEMPERATURE_GPU),
            "gpu_processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)),
        }
        sample = {}
        for field, read in readers.items():
            with suppress(pynvml.NVMLError):
                sample[field] = float(read())
        return sample


def start_nvml() -> bool:
    """Initialize NVML; return False on a machine without NVIDIA's driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def stop_nvml() -> None:
    """Shut NVML down."""
    pynvml.nvmlShutdown()


def gpu_count() -> int:
    """Return the number of GPUs that the driver knows."""
    return int(pynvml.nvmlDeviceGetCount())


def gpu_named(name: str) -> NvidiaGpu:
    """Return the GPU with this index, in the order of the PCI bus, or with this UUID."""
    if name.isdigit():
        return NvidiaGpu(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
    return NvidiaGpu(pynvml.nvmlDeviceGetHandleByUUID(name))


def other_gpus(gpus: Iterable[NvidiaGpu]) -> list[NvidiaGpu]:
    """Return the GPUs of this machine that are not in ``gpus``."""
    excluded = {gpu.index for gpu in gpus}
    return [gpu_named(str(index)) for index in range(gpu_count()) if index not in excluded]


def highest_load(gpus: Iterable[NvidiaGpu], pids: Collection[int]) -> float | None:
    """Return the highest load of ``gpus`` in percent, without the GPUs that a process outside of ``pids`` uses.

    Returns None if no GPU is left, or if NVML does not report the load or the processes.
    """
    try:
        return max((gpu.utilization() for gpu in gpus if gpu.pids() <= set(pids)), default=None)
    except pynvml.NVMLError:
        return None


def installed_gpus() -> tuple[Gpu, ...]:
    """Return every GPU that the driver knows, in the order of the PCI bus."""
    return tuple(_read_gpu(index, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(gpu_count()))


def driver_version() -> str:
    """Return the driver's version."""
    return str(pynvml.nvmlSystemGetDriverVersion())


def topology() -> str | None:
    """Return the links between GPUs as ``nvidia-smi topo -m`` prints them; None without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    result = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True)
    return result.stdout.strip() or None


def _read_gpu(index: int, handle: Any) -> Gpu:
    return Gpu(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        memory_gib=_usable_bytes(handle) / GIB,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
    )


def _usable_bytes(handle: Any) -> int:
    """Return the GPU's memory in bytes, without the part that the driver reserves, if the driver reports it."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return int(memory.total - memory.reserved)
