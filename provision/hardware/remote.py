"""What a machine is, as it says over a shell."""

from provision.errors import CommandFailed
from provision.models import Gpu, Node
from provision.ssh.shell import Shell

MIB_OF_GIB = 1024
KIB_OF_GIB = 1024**2
ASK = """
nproc
sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo
sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1 | grep . || uname -m
if command -v nvidia-smi > /dev/null; then
  nvidia-smi --query-gpu=index,name,memory.total,memory.reserved,uuid --format=csv,noheader,nounits
fi
"""


def node_over(shell: Shell) -> Node:
    """The machine's cores, memory and GPUs; CommandFailed where it cannot say."""
    cores, memory_kib, processor, *lines = shell.run(ASK, repeatable=True).out.strip().splitlines()
    gpus = tuple(_gpu(shell, line) for line in lines)
    memory_gib = int(memory_kib) / KIB_OF_GIB
    names = sorted({gpu.name for gpu in gpus})
    counted = [f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names]
    words = [f"{cores} cores of {processor}", f"{memory_gib:.0f} GiB of memory", ", ".join(counted) or "no GPU"]
    return Node(", ".join(words), gpus, int(cores), memory_gib, processor)


def _gpu(shell: Shell, line: str) -> Gpu:
    """One line of nvidia-smi; memory that the driver keeps to itself is not to be had."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 5:
        raise CommandFailed(f"{shell.where}: nvidia-smi does not name its GPUs: {line}", 0)
    index, name, total, reserved, uuid = parts
    kept = float(reserved) if reserved.replace(".", "").isdigit() else 0.0
    return Gpu(int(index), name, (float(total) - kept) / MIB_OF_GIB, uuid)
