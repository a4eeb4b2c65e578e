"""Allocate the resources of a machine to rows: GPUs, or CPU cores on a machine without GPUs, and host memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.runners.admission import host_memory_needed_gib
from experiments.suites.row_spec import RowSpec
from provision.models import Gpu, Node

MAX_CPU_SHARES = 4


@dataclass(frozen=True, eq=False)
class Allocation:
    """Resources of one row: its GPUs (none for a row on the CPU) and the number of its CPU cores.

    part_numbers: numbers of the parts of the machine that the row occupies (see ResourcePool). shared: whether other
    rows may use the row's GPU at the same time.
    """

    part_numbers: tuple[int, ...]
    gpus: tuple[Gpu, ...]
    cores: int
    shared: bool = False


class ResourcePool:
    """The free resources of a machine, in ``size`` equal parts.

    A part is a GPU, or one row's share of a shared GPU. Without GPUs, a part is a share of the cores. host_memory_gib:
    host memory that all running rows may use together. nodes: number of machines that a row's ranks run on.
    rows_per_gpu: number of rows that share a GPU; if it is above 1, each row needs exactly one GPU.
    """

    def __init__(self, node: Node, host_memory_gib: float, nodes: int = 1, rows_per_gpu: int = 1) -> None:
        self._nodes = nodes
        self._shared = rows_per_gpu > 1
        self.size = len(node.gpus) * rows_per_gpu or max(1, min(node.cpus, MAX_CPU_SHARES))
        self._gpus = node.gpus
        self._cores = max(1, node.cpus // self.size)
        self._free = list(range(self.size))
        self._withdrawn: set[int] = set()
        self._memory_gib = host_memory_gib
        self._used: dict[Allocation, float] = {}

    def allocate(self, spec: RowSpec) -> Allocation | None:
        """Return resources for the row; None while other rows use them.

        A row that needs more host memory than the pool has runs alone. A row on the CPU of a machine with GPUs also
        runs alone, because it would slow down the threads that launch the GPU kernels of other rows.
        """
        count = self.part_count(spec)
        needed_gib = host_memory_needed_gib(spec)
        if count > len(self._free) or (self._used and needed_gib > self._memory_gib - sum(self._used.values())):
            return None
        numbers = tuple(self._free[:count])
        gpus = tuple(
            self._gpus[self._gpu_index_of_part(number)] for number in numbers if self._gpus and spec.settings.gpus
        )
        allocation = Allocation(numbers, gpus, self._cores * max(1, count), self._shared)
        self._free = self._free[count:]
        self._used[allocation] = needed_gib
        return allocation

    def part_count(self, spec: RowSpec) -> int:
        """Return the number of parts of the machine that the row occupies."""
        if not self._gpus:
            return 1
        return spec.settings.gpus // self._nodes if spec.settings.gpus else self.size

    def _gpu_index_of_part(self, number: int) -> int:
        """Return the index of the GPU that a part belongs to; without GPUs, the part's own number."""
        return number % len(self._gpus) if self._gpus else number

    def release(self, allocation: Allocation) -> None:
        """Make the resources of a row that has ended available again, except withdrawn ones."""
        del self._used[allocation]
        parts = sorted([*self._free, *allocation.part_numbers])
        self._free = [number for number in parts if self._gpu_index_of_part(number) not in self._withdrawn]
        self.size -= len(parts) - len(self._free)

    def withdraw(self, allocation: Allocation) -> None:
        """Withdraw the GPUs of a row that has ended: no later row gets a part of them.

        Rows that already run on the same GPUs continue.
        """
        self._withdrawn |= {self._gpu_index_of_part(number) for number in allocation.part_numbers}
        self.release(allocation)


def most_memory_first(specs: Sequence[RowSpec]) -> list[RowSpec]:
    """Return the rows in the order in which they start: most host memory first; with equal memory, offload first."""
    return sorted(specs, key=lambda spec: (host_memory_needed_gib(spec), spec.settings.uses_host_memory), reverse=True)
