"""Replace CUDA graphs. A capture runs its operations once, in a private memory pool; a replay allocates nothing."""

import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from experiments.prediction.phantom.library import Phantom

PoolHandle = tuple[int, int]


class GeneratorState:
    """Seed and offset of the random generator, which all captured graphs share. They are not in a graph's pool."""

    def __init__(self) -> None:
        self.seed, self.offset = (torch.empty(1, dtype=torch.int64, device="cuda") for _ in range(2))


class CUDAGraph:
    """Replacement of torch.cuda.CUDAGraph.

    The memory of a captured graph's pool stays reserved while a graph exists that uses the pool.
    """

    phantom: ClassVar[Phantom]
    capturing: ClassVar[bool] = False
    captures: ClassVar[int] = 0
    """Number of graphs that were captured."""
    on_replay: ClassVar[Callable[[], None]] = staticmethod(lambda: None)
    """Function that each replay calls."""
    _pools: ClassVar[Any] = itertools.count(1)
    _users: ClassVar[Counter[PoolHandle]] = Counter()
    _states: ClassVar[weakref.WeakSet[GeneratorState]] = weakref.WeakSet()

    def __init__(self, keep_graph: bool = False) -> None:
        self._pool: PoolHandle | None = None
        self._state: GeneratorState | None = None

    def capture_begin(self, pool: PoolHandle | None = None, *_: Any, **__: Any) -> None:
        """Allocate from the graph's pool from now on: ``pool``, or a new one."""
        self.reset()
        self._state = next(iter(CUDAGraph._states), None) or GeneratorState()
        CUDAGraph._states.add(self._state)
        self._pool = pool or new_pool()
        CUDAGraph._users[self._pool] += 1
        CUDAGraph.captures += 1
        CUDAGraph.capturing = True
        self.phantom.set_pool(self._pool[1])

    def capture_end(self) -> None:
        """Stop allocating from the graph's pool."""
        CUDAGraph.capturing = False
        self.phantom.set_pool(0)

    def replay(self) -> None:
        """Call ``on_replay`` only, because the results of a replay are in the memory of the capture."""
        CUDAGraph.on_replay()

    def reset(self) -> None:
        """Release the pool if no other graph uses it."""
        pool, self._pool = self._pool, None
        self._state = None
        if pool is None:
            return
        CUDAGraph._users[pool] -= 1
        if not CUDAGraph._users[pool]:
            self.phantom.end_pool(pool[1])

    def pool(self) -> PoolHandle | None:
        """Return the handle of the pool, which other graphs can use."""
        return self._pool

    def instantiate(self) -> None: ...
    def enable_debug_mode(self) -> None: ...
    def debug_dump(self, debug_path: str) -> None: ...

    def __del__(self) -> None:
        self.reset()


def new_pool() -> PoolHandle:
    """Return the handle of a new private pool."""
    return 0, next(CUDAGraph._pools)


def replace_cuda_graphs(phantom: Phantom) -> None:
    """Make torch.cuda capture graphs on the phantom device."""
    CUDAGraph.phantom = phantom
    replacements = {
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": new_pool,
        "is_current_stream_capturing": lambda: CUDAGraph.capturing,
    }
    for owner in (torch.cuda, torch.cuda.graphs):
        for name, replacement in replacements.items():
            setattr(owner, name, replacement)
    setattr(torch._C, "_host_emptyCache", lambda: None)  # noqa: B010 - the stubs have it only with CUDA
