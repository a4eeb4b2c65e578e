"""AMD Instinct GPUs, read from the files of the Linux driver. No privileges are needed.

Sources: Linux, Documentation/gpu/amdgpu (memory, load, hwmon) and drivers/gpu/drm/amd/amdkfd/kfd_topology.c (topology
nodes; a job cannot read the nodes of GPUs outside its cgroup); libdrm, data/amdgpu.ids (names); ROCm documentation,
"GPU isolation techniques" (ROCR_VISIBLE_DEVICES renumbers the GPUs; CUDA_VISIBLE_DEVICES uses these new numbers).
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provision.models import GIB, Gpu

SYS = Path("/sys")
NAMES = {
    0x738C: "AMD Instinct MI100",
    0x7408: "AMD Instinct MI250X",
    0x740C: "AMD Instinct MI250X/MI250",
    0x740F: "AMD Instinct MI210",
    0x74A0: "AMD Instinct MI300A",
    0x74A1: "AMD Instinct MI300X",
}
"""Names by PCI device id. Other GPUs with the same driver are graphics cards and are ignored."""


@dataclass(frozen=True)
class AmdGpu:
    """One GPU, such as a die of an MI250X; ``folder`` contains the driver's files for it."""

    name: str
    uuid: str
    folder: Path

    @property
    def memory_gib(self) -> float:
        """Total memory, GiB."""
        return self._number("mem_info_vram_total") / GIB

    @property
    def used_gib(self) -> float:
        """Memory in use by all processes, GiB."""
        return self._number("mem_info_vram_used") / GIB

    def process_gib(self) -> dict[int, float]:
        """Return {}, because the driver's files do not report the memory of processes."""
        return {}

    def sample(self) -> dict[str, float]:
        """Return load (percent), memory (GiB), power (W), clock (MHz) and temperature (C).

        Values that the driver does not report are left out.
        """
        readers: dict[str, Callable[[], float]] = {
            "gpu_util_percent": lambda: self._number("gpu_busy_percent"),
            "gpu_memory_gib": lambda: self.used_gib,
            "gpu_power_w": lambda: self._number("hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input") / 1e6,
            "gpu_sm_clock_mhz": lambda: self._number("hwmon/hwmon*/freq1_input") / 1e6,
            "gpu_temperature_c": lambda: self._number("hwmon/hwmon*/temp1_input", "hwmon/hwmon*/temp2_input") / 1e3,
        }
        sample = {}
        for field, read in readers.items():
            with suppress(OSError):
                sample[field] = read()
        return sample

    def _number(self, *patterns: str) -> float:
        """Return the number in the first file that matches one of ``patterns``."""
        paths = (path for pattern in patterns for path in sorted(self.folder.glob(pattern)))
        path = next(paths, self.folder / patterns[0])
        return float(path.read_text())


def gpus() -> tuple[AmdGpu, ...]:
    """Return the GPUs that this process may use, in the order of ROCR_VISIBLE_DEVICES, else of the topology nodes."""
    nodes = sorted((SYS / "class/kfd/kfd/topology/nodes").glob("*"), key=lambda node: int(node.name))
    readable = tuple(gpu for node in nodes if (gpu := _gpu_of_node(node / "properties")))
    visible = os.environ.get("ROCR_VISIBLE_DEVICES")
    if visible is None:
        return readable
    by_name = {str(index): gpu for index, gpu in enumerate(readable)} | {gpu.uuid.lower(): gpu for gpu in readable}
    names = [name.strip().lower() for name in visible.split(",")]
    return tuple(by_name[name] for name in names if name in by_name)


def gpu_count() -> int:
    """Return the number of GPUs that this process may use."""
    return len(gpus())


def gpu_named(name: str) -> AmdGpu:
    """Return a GPU by its index. name: the index as text, as in CUDA_VISIBLE_DEVICES."""
    return gpus()[int(name)]


def installed_gpus() -> tuple[Gpu, ...]:
    """Return every GPU that this process may use."""
    return tuple(Gpu(index, gpu.name, gpu.memory_gib, gpu.uuid) for index, gpu in enumerate(gpus()))


def driver_version() -> str | None:
    """Return the driver's version, or the version of Linux if Linux includes the driver; None without the driver."""
    module = SYS / "module/amdgpu"
    if not module.is_dir():
        return None
    with suppress(OSError):
        return f"amdgpu {(module / 'version').read_text().strip()}"
    return f"amdgpu of Linux {os.uname().release}"


def _gpu_of_node(properties: Path) -> AmdGpu | None:
    """Return the GPU of a topology node; None for processors, graphics cards and GPUs outside this process's cgroup."""
    try:
        fields = dict(line.split(maxsplit=1) for line in properties.read_text().splitlines() if " " in line)
    except OSError:
        return None
    name = NAMES.get(int(fields.get("device_id", 0)))
    if name is None:
        return None
    folder = SYS / f"class/drm/renderD{fields['drm_render_minor']}/device"
    return AmdGpu(name, f"GPU-{int(fields.get('unique_id', 0)):016x}", folder)
