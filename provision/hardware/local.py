"""The machine that the command runs on."""

import os
import platform
from pathlib import Path

import psutil
import pynvml

from provision.errors import UnknownDevices
from provision.hardware import amd
from provision.models import Gpu, Node

GIB = 1024**3


def node() -> Node:
    """This machine, with the GPUs that CUDA_VISIBLE_DEVICES leaves visible."""
    gpus = visible(installed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    cpus = len(os.sched_getaffinity(0))
    memory_gib = psutil.virtual_memory().total / GIB
    processor = processor_name()
    parts = [f"{cpus} cores of {processor}", f"{memory_gib:.0f} GiB of memory", _gpus_in_words(gpus)]
    return Node(", ".join(parts), gpus, cpus, memory_gib, processor)


def installed_gpus() -> tuple[Gpu, ...]:
    """Every GPU that NVIDIA's driver knows, by its index in the order of the bus, else AMD's; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return amd.gpus()
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def visible(gpus: tuple[Gpu, ...], devices: str | None) -> tuple[Gpu, ...]:
    """The GPUs that ``devices`` (CUDA_VISIBLE_DEVICES: indices or UUIDs; None: all) names, in its order.

    Raises UnknownDevices for a name that no GPU has.
    """
    if devices is None:
        return gpus
    names = [name.strip() for name in devices.split(",")]
    return tuple(_gpu_of_name(gpus, name) for name in names if name not in ("", "-1"))


def processor_name() -> str:
    """The processor's model as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        memory_gib=_usable_bytes(handle) / GIB,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
    )


def _usable_bytes(handle: object) -> int:
    """Memory less what the driver keeps for itself, where the driver tells it."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetMemoryInfo(handle).total
    return memory.total - memory.reserved


def _gpu_of_name(gpus: tuple[Gpu, ...], name: str) -> Gpu:
    for gpu in gpus:
        if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name)):
            return gpu
    there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus) or "none, this machine has no GPU"
    raise UnknownDevices(f"CUDA_VISIBLE_DEVICES: unknown GPU {name!r}; allowed: {there}")


def _gpus_in_words(gpus: tuple[Gpu, ...]) -> str:
    names = sorted({gpu.name for gpu in gpus})
    counted = (f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)
    return ", ".join(counted) or "no GPU"
