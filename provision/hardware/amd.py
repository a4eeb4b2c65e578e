"""AMD's Instinct GPUs, as the kernel's driver tells of them in files that everybody may read.

Sources: Linux, Documentation/gpu/amdgpu (memory, load, hwmon) and drivers/gpu/drm/amd/amdkfd/kfd_topology.c (the nodes,
of which those of GPUs outside a job's cgroup cannot be read); libdrm, data/amdgpu.ids (names); ROCm's documents, "GPU
isolation techniques" (ROCR_VISIBLE_DEVICES, on top of which CUDA_VISIBLE_DEVICES counts anew).
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provision.models import Gpu

GIB = 1024**3
SYS = Path("/sys")
NAMES = {
    0x738C: "AMD Instinct MI100",
    0x7408: "AMD Instinct MI250X",
    0x740C: "AMD Instinct MI250X/MI250",
    0x740F: "AMD Instinct MI210",
    0x74A0: "AMD Instinct MI300A",
    0x74A1: "AMD Instinct MI300X",
}
"""By the device's number on the bus. The driver's other GPUs draw screens."""


@dataclass(frozen=True)
class Device:
    """One GPU, a die of an MI250X for instance; ``folder`` has what the driver tells of it."""

    name: str
    uuid: str
    folder: Path

    @property
    def memory_gib(self) -> float:
        return self._number("mem_info_vram_total") / GIB

    @property
    def used_gib(self) -> float:
        """Memory in use, by everybody."""
        return self._number("mem_info_vram_used") / GIB

    def sample(self) -> dict[str, float]:
        """Load (percent), memory (GiB), power (W), clock (MHz), temperature (C); what it does not tell is not there."""
        readings: dict[str, Callable[[], float]] = {
            "gpu_util_percent": lambda: self._number("gpu_busy_percent"),
            "gpu_memory_gib": lambda: self.used_gib,
            "gpu_power_w": lambda: self._number("hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input") / 1e6,
            "gpu_sm_clock_mhz": lambda: self._number("hwmon/hwmon*/freq1_input") / 1e6,
            "gpu_temperature_c": lambda: self._number("hwmon/hwmon*/temp1_input", "hwmon/hwmon*/temp2_input") / 1e3,
        }
        sample = {}
        for field, read in readings.items():
            with suppress(OSError):
                sample[field] = read()
        return sample

    def _number(self, *patterns: str) -> float:
        found = (path for pattern in patterns for path in sorted(self.folder.glob(pattern)))
        path = next(found, self.folder / patterns[0])
        return float(path.read_text())


def devices() -> tuple[Device, ...]:
    """The GPUs that this process may use, as ROCm numbers them: by its nodes, or as ROCR_VISIBLE_DEVICES has them."""
    nodes = sorted((SYS / "class/kfd/kfd/topology/nodes").glob("*"), key=lambda node: int(node.name))
    there = tuple(device for node in nodes if (device := _device(node / "properties")))
    named = os.environ.get("ROCR_VISIBLE_DEVICES")
    if named is None:
        return there
    by_name = {str(index): device for index, device in enumerate(there)} | {one.uuid.lower(): one for one in there}
    names = [name.strip().lower() for name in named.split(",")]
    return tuple(by_name[name] for name in names if name in by_name)


def gpus() -> tuple[Gpu, ...]:
    return tuple(Gpu(index, one.name, one.memory_gib, one.uuid) for index, one in enumerate(devices()))


def driver() -> str:
    """The driver's version; the kernel's where the driver came with it."""
    with suppress(OSError):
        return f"amdgpu {(SYS / 'module/amdgpu/version').read_text().strip()}"
    return f"amdgpu of Linux {os.uname().release}"


def _device(properties: Path) -> Device | None:
    """The GPU of a node; None for processors, for what draws screens, and for what this process may not use."""
    try:
        facts = dict(line.split(maxsplit=1) for line in properties.read_text().splitlines() if " " in line)
    except OSError:
        return None
    name = NAMES.get(int(facts.get("device_id", 0)))
    if name is None:
        return None
    folder = SYS / f"class/drm/renderD{facts['drm_render_minor']}/device"
    return Device(name, f"GPU-{int(facts.get('unique_id', 0)):016x}", folder)
