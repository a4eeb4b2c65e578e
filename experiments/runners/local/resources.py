"""What a machine can run at once: its GPUs, or shares of its processor, and its memory. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.runners.admission import host_need_gib, offloads
from experiments.suites.row_spec import RowSpec
from provision.models import Gpu, Node

MOST_CPU_SLOTS = 4


@dataclass(frozen=True)
class Slot:
    """Room for one row: the GPUs that it has to itself (none on a machine without) and its share of the cores."""

    numbers: tuple[int, ...]
    gpus: tuple[Gpu, ...]
    cores: int


class Slots:
    """The free room of a machine. nodes: machines that a row's ranks are spread over, this being one of them."""

    def __init__(self, node: Node, host_memory_gib: float, nodes: int = 1) -> None:
        self._nodes = nodes
        self.count = len(node.gpus) or max(1, min(node.cpus, MOST_CPU_SLOTS))
        self._gpus = node.gpus
        self._cores = max(1, node.cpus // self.count)
        self._free = list(range(self.count))
        self._memory_gib = host_memory_gib
        self._taken: dict[Slot, float] = {}

    def take(self, spec: RowSpec) -> Slot | None:
        """Room for the row, or None while others have it. A row with too much for the machine gets it alone."""
        wanted = spec.settings.world_size // self._nodes if self._gpus else 1
        need_gib = host_need_gib(spec)
        if wanted > len(self._free) or (self._taken and need_gib > self._memory_gib - sum(self._taken.values())):
            return None
        numbers = tuple(self._free[:wanted])
        slot = Slot(numbers, tuple(self._gpus[number] for number in numbers if self._gpus), self._cores * wanted)
        self._free = self._free[wanted:]
        self._taken[slot] = need_gib
        return slot

    def give_back(self, slot: Slot) -> None:
        """The row has ended and its room is free again."""
        del self._taken[slot]
        self._free = sorted([*self._free, *slot.numbers])

    def withdraw(self, slot: Slot) -> None:
        """The row has ended, but its room cannot be used again."""
        del self._taken[slot]
        self.count -= len(slot.numbers)


def most_memory_first(specs: Sequence[RowSpec]) -> list[RowSpec]:
    """The rows in the order in which they start: most host memory first, then offloaded ones."""
    return sorted(specs, key=lambda spec: (host_need_gib(spec), offloads(spec)), reverse=True)
