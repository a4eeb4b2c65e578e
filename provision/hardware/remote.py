"""Hardware of the machine that a shell is connected to."""

from provision.errors import CommandFailed
from provision.hardware import nvidia_smi
from provision.models import Gpu, Node, build_node
from provision.ssh.shell import Shell

KIB_PER_GIB = 1024**2
DESCRIBE_COMMAND = f"""
nproc
sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo
sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1 | grep . || uname -m
if command -v nvidia-smi > /dev/null; then
  {nvidia_smi.LIST_COMMAND}
fi
"""


def remote_node(shell: Shell) -> Node:
    """Return the machine's cores, memory and GPUs. Raises CommandFailed if it cannot report them."""
    cores, memory_kib, processor, *lines = shell.run(DESCRIBE_COMMAND, repeatable=True).out.strip().splitlines()
    gpus = [_parse_gpu(shell, line) for line in lines]
    return build_node(gpus, int(cores), int(memory_kib) / KIB_PER_GIB, processor)


def _parse_gpu(shell: Shell, line: str) -> Gpu:
    gpu = nvidia_smi.parse_gpu(line)
    if gpu is None:
        raise CommandFailed(f"{shell.where}: nvidia-smi does not list its GPUs: {line}; check the GPUs' driver", 0)
    return gpu
