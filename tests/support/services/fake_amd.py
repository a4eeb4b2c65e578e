"""Fake of AMD's driver: the files of an MI250X (two dies), a processor and a graphics card.

Based on the Linux documentation and on the files that ROCm's tools read; not compared with a real machine.
"""

from pathlib import Path

MEMORY = 68_702_699_520
IDS = (0x4B2C1A9F8D3E6F7A, 0x1)


def amd_files(folder: Path) -> Path:
    """Write what /sys would contain to ``folder``."""
    nodes = folder / "class/kfd/kfd/topology/nodes"
    _write(nodes / "0/properties", "cpu_cores_count 64\nsimd_count 0\ndevice_id 0\ndrm_render_minor 0\nunique_id 0\n")
    _write(nodes / "1/properties", f"simd_count 8\ndevice_id {0x164E}\ndrm_render_minor 128\nunique_id 5\n")
    for number, unique in enumerate(IDS):
        minor = 129 + number
        facts = f"simd_count 440\ndevice_id {0x7408}\ndrm_render_minor {minor}\nunique_id {unique}\n"
        _write(nodes / f"{10 - number}/properties", facts)
        device = folder / f"class/drm/renderD{minor}/device"
        _write(device / "mem_info_vram_total", f"{MEMORY}\n")
        _write(device / "mem_info_vram_used", f"{(1 + number) * 2**30}\n")
        _write(device / "gpu_busy_percent", "93\n")
        _write(device / "hwmon/hwmon7/freq1_input", "1700000000\n")
        _write(device / "hwmon/hwmon7/temp2_input", "61000\n")
    _write(folder / "class/drm/renderD130/device/hwmon/hwmon7/power1_average", "412500000\n")
    _write(folder / "module/amdgpu/version", "6.3.6\n")
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
