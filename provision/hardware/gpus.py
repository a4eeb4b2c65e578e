"""The GPUs of this machine, of any vendor: NVIDIA's if NVML can be loaded, otherwise AMD's."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from provision.hardware import amd, nvidia
from provision.models import Gpu


class GpuHandle(Protocol):
    """A GPU whose memory use and load can be read repeatedly."""

    @property
    def used_gib(self) -> float:
        """Memory in use by all processes, GiB."""
        ...

    def process_gib(self) -> dict[int, float]:
        """Return the GPU memory of each process that computes on this GPU, GiB, by process id.

        Processes whose memory is not reported are left out.
        """
        ...

    def sample(self) -> dict[str, float]:
        """Return the readings that the GPU reports now, by the name of their column in the telemetry file."""
        ...


class VendorModule(Protocol):
    """The functions that the module of each vendor has: nvidia.py and amd.py."""

    def gpu_count(self) -> int:
        """Return the number of GPUs."""
        ...

    def gpu_named(self, name: str) -> GpuHandle:
        """Return a GPU by its name in CUDA_VISIBLE_DEVICES."""
        ...

    def installed_gpus(self) -> tuple[Gpu, ...]:
        """Describe every GPU."""
        ...

    def driver_version(self) -> str | None:
        """Return the driver's version; None without a driver."""
        ...


def installed_gpus() -> tuple[Gpu, ...]:
    """Return every GPU that the driver knows; none without a driver."""
    with _open_vendor() as vendor:
        return vendor.installed_gpus()


@contextmanager
def open_driver() -> Iterator[None]:
    """Keep the vendor's library open while the body runs, so that the functions of this module need not open it again.

    This also keeps NVIDIA's GPUs on. Without persistence mode, the driver switches off a GPU that no program uses. The
    next program then waits a second or more until the GPU has started (NVIDIA's documentation, "Driver Persistence").
    """
    with _open_vendor():
        yield


def used_gib(indices: Sequence[int]) -> dict[int, float]:
    """Return the memory in use by all processes on each of these GPUs, GiB, by the GPU's index."""
    if not indices:
        return {}
    with _open_vendor() as vendor:
        return {index: vendor.gpu_named(str(index)).used_gib for index in indices}


def process_gib(index: int) -> dict[int, float]:
    """Return the memory of each process that computes on the GPU with this index, GiB, by process id.

    Processes whose memory is not reported are left out.
    """
    with _open_vendor() as vendor:
        return vendor.gpu_named(str(index)).process_gib()


def visible_gpus() -> list[GpuHandle]:
    """Return handles of the GPUs that CUDA_VISIBLE_DEVICES names, or of all GPUs without this variable.

    The handles are valid until the process ends.
    """
    vendor: VendorModule = nvidia if nvidia.start_nvml() else amd
    number = vendor.gpu_count()
    names = visible_names(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if names is None:
        names = [str(index) for index in range(number)]
    return [vendor.gpu_named(name) for name in names] if number else []


def make_load_reader_of_other_gpus() -> Callable[[Collection[int]], float | None]:
    """Return a function that reads the highest load, in percent, of the GPUs that CUDA_VISIBLE_DEVICES does not name.

    The argument of the function is the process ids of a row. The function ignores GPUs that any other process uses, and
    returns None if no GPU is left. For AMD's GPUs, whose processes are unknown, it always returns None.
    """
    if not nvidia.start_nvml():
        return lambda pids: None
    visible = [gpu for gpu in visible_gpus() if isinstance(gpu, nvidia.NvidiaGpu)]
    others = nvidia.other_gpus(visible)
    return lambda pids: nvidia.highest_load(others, pids)


def driver_version() -> str | None:
    """Return the version of the GPUs' driver; None without a driver."""
    with _open_vendor() as vendor:
        return vendor.driver_version()


def topology() -> str | None:
    """Return the links between GPUs as the vendor's tool prints them; None without the tool."""
    return nvidia.topology()


def visible_names(devices: str | None) -> list[str] | None:
    """Return the indices or UUIDs in ``devices``, a value of CUDA_VISIBLE_DEVICES; None for all GPUs."""
    if devices is None:
        return None
    names = (name.strip() for name in devices.split(","))
    return [name for name in names if name not in ("", "-1")]


@contextmanager
def _open_vendor() -> Iterator[VendorModule]:
    if not nvidia.start_nvml():
        yield amd
        return
    try:
        yield nvidia
    finally:
        nvidia.stop_nvml()
