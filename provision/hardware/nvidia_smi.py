"""NVIDIA GPUs of another machine: ``nvidia-smi`` commands, and parsers for the lines that they print."""

from dataclasses import dataclass

from provision.models import Gpu

MIB_PER_GIB = 1024
LIST_COMMAND = "nvidia-smi --query-gpu=index,name,memory.total,memory.reserved,uuid --format=csv,noheader,nounits"
STATUS_COMMAND = """\
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


def parse_gpu(line: str) -> Gpu | None:
    """Return the GPU that a line of LIST_COMMAND's output describes; None for other text.

    The memory of the returned GPU excludes the part that the driver reserves for itself.
    """
    fields = _split_fields(line)
    if len(fields) != 5:
        return None
    index, name, total, reserved, uuid = fields
    return Gpu(int(index), name, (float(total) - (parse_number(reserved) or 0.0)) / MIB_PER_GIB, uuid)


def parse_status(line: str) -> GpuStatus | None:
    """Return the GPU that a line of STATUS_COMMAND's output describes; None for other text."""
    fields = _split_fields(line)
    if len(fields) != 7:
        return None
    uuid, index, name, load, used, total, celsius = fields
    return GpuStatus(
        uuid, int(index), name, parse_number(load), _parse_gib(used), _parse_gib(total), parse_number(celsius)
    )


def parse_number(text: str) -> float | None:
    """Return the number in a field; None for [N/A]."""
    try:
        return float(text)
    except ValueError:
        return None


def _parse_gib(mib: str) -> float | None:
    value = parse_number(mib)
    return None if value is None else value / MIB_PER_GIB


def _split_fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")]
