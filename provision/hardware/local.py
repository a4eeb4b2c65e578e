"""The hardware of this machine, on which the command runs."""

import os
import platform
from pathlib import Path

from provision.errors import UnknownDevices
from provision.hardware.gpus import installed_gpus, visible_names
from provision.hardware.host_memory import host_memory
from provision.models import GIB, Gpu, Node, build_node


def this_machine() -> Node:
    """Return this machine, with the GPUs that CUDA_VISIBLE_DEVICES names, or all GPUs without this variable.

    Raises UnknownDevices if the variable names a GPU that the machine does not have.
    """
    gpus = select_visible(installed_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return build_node(gpus, len(os.sched_getaffinity(0)), host_memory().total / GIB, processor_name())


def select_visible(gpus: tuple[Gpu, ...], devices: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that are listed in ``devices``, in the same order.

    devices: a value of CUDA_VISIBLE_DEVICES, None for all GPUs. Raises UnknownDevices for a name that no GPU has.
    """
    names = visible_names(devices)
    return gpus if names is None else tuple(_gpu_named(gpus, name) for name in names)


def processor_name() -> str:
    """Return the processor's model as Linux reports it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _gpu_named(gpus: tuple[Gpu, ...], name: str) -> Gpu:
    for gpu in gpus:
        if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name)):
            return gpu
    allowed = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus) or "none, this machine has no GPU"
    raise UnknownDevices(f"CUDA_VISIBLE_DEVICES: unknown GPU {name!r}; allowed: {allowed}")
