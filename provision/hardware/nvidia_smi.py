"""NVIDIA GPUs of another machine: ``nvidia-smi`` commands, and parsers for the lines that they print."""

from dataclasses import dataclass

from provision.models import Gpu

MIB_PER_GIB = 1024
LIST = "nvidia-smi --query-gpu=index,name,memory.total,memory.reserved,uuid --format=csv,noheader,nounits"
STATUS = """\
nvidia-smi --query-gpu=uuid,index,name,utilization.gpu,memory.used,memory.total,temperature.gpu \\
  --format=csv,noheader,nounits"""


@dataclass(frozen=True)
class GpuStatus:
    """A GPU at one moment: load in percent, memory in GiB, temperature in degrees Celsius; None if not reported."""

    uuid: str
    index: int
    name: str
    util_percent: float | None
    used_gib: float | None
    total_gib: float | None
    celsius: float | None


def gpu_of(line: str) -> Gpu | None:
    """Return the GPU in a line that LIST prints, without the memory that the driver reserves; None for other text."""
    fields = _fields(line)
    if len(fields) != 5:
        return None
    index, name, total, reserved, uuid = fields
    return Gpu(int(index), name, (float(total) - (number(reserved) or 0.0)) / MIB_PER_GIB, uuid)


def status_of(line: str) -> GpuStatus | None:
    """Return the GPU in a line that STATUS prints; None for other text."""
    fields = _fields(line)
    if len(fields) != 7:
        return None
    uuid, index, name, busy, used, total, celsius = fields
    return GpuStatus(uuid, int(index), name, number(busy), _gib(used), _gib(total), number(celsius))


def number(text: str) -> float | None:
    """Return the number in a field; None for [N/A]."""
    try:
        return float(text)
    except ValueError:
        return None


def _gib(mib: str) -> float | None:
    value = number(mib)
    return None if value is None else value / MIB_PER_GIB


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")]
