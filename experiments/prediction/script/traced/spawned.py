"""Run one rank of a script that starts its ranks itself: with torch.multiprocessing or accelerate's notebook_launcher."""

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from provision.words import number_with_noun

StartRanks = Callable[[int, int, str], None]
"""Simulate this number of GPUs per node and of nodes, with a note for the output."""


def run_spawned_function(rank: int, start_ranks: StartRanks) -> None:
    """Replace torch.multiprocessing.spawn and PyTorch's elastic launcher: rank ``rank`` runs in this process.

    The rank has a simulated group of as many ranks as the script starts.
    """
    from torch import multiprocessing
    from torch.distributed.launcher.api import elastic_launch

    run_command: Any = elastic_launch.__call__

    def start_processes(
        function: Any, args: tuple[Any, ...] = (), nprocs: int = 1, join: bool = True, *_: Any, **__: Any
    ) -> Any:
        start_ranks(nprocs, 1, _describe(nprocs))
        function(rank, *args)
        return None if join else SimpleNamespace(join=lambda *_: True)

    def run_function(launcher: Any, *args: Any) -> Any:
        config, function = launcher._config, launcher._entrypoint
        if not callable(function):
            return run_command(launcher, *args)
        ranks = config.nproc_per_node * config.max_nodes
        start_ranks(config.nproc_per_node, config.max_nodes, _describe(ranks))
        return {rank: function(*args)}

    for module in (multiprocessing, importlib.import_module("torch.multiprocessing.spawn")):
        setattr(module, "start_processes", start_processes)  # noqa: B010 - mypy rejects an assignment to a module
    setattr(elastic_launch, "__call__", run_function)  # noqa: B010 - mypy rejects the assignment to a method


def _describe(ranks: int) -> str:
    count = ", as torch.cuda.device_count() is 1" if ranks == 1 else ""
    return f"the script itself starts {number_with_noun(ranks, 'rank')}{count}; each predicted rank ran in one process"
