"""Simulate the ranks of a training when it starts them: with a launcher, or in the script itself."""

import importlib
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.launcher.api import elastic_launch

from experiments.prediction.phantom.ranks import replace_init_process_group
from provision.words import number_with_noun

run_command_in_processes: Any = elastic_launch.__call__


class StartedRanks:
    """The ranks of a training, one of which runs in this process.

    rank: number of this rank. simulate: simulates a number of GPUs per node and a number of nodes. on_failure: is
    called with the error of a rank that fails, before the script sees it. notes: on the number of ranks, for the
    output.
    """

    def __init__(
        self, rank: int, simulate: Callable[[int, int], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self.world_size, self.notes = 1, list[str]()
        self._rank, self._simulate, self._on_failure = rank, simulate, on_failure
        self._make_first_group: Any = dist.init_process_group

    def watch_script(self) -> None:
        """Simulate ranks as soon as the script starts processes or makes its first process group.

        Scripts start processes with torch.multiprocessing, or with accelerate's notebook_launcher. No process is
        started: their function runs for this rank, in this process.
        """
        replace_init_process_group(self._init_process_group)
        for module in (multiprocessing, importlib.import_module("torch.multiprocessing.spawn")):
            setattr(module, "start_processes", self._start_processes)  # noqa: B010 - mypy rejects the assignment
        setattr(elastic_launch, "__call__", lambda *given: self._start_elastic(*given))  # noqa: B010 - the same

    def start(self, devices: int, nodes: int, note: str) -> None:
        """Simulate the ranks of ``nodes`` nodes with ``devices`` GPUs each, unless ranks are simulated already."""
        if self._make_first_group is None:
            if devices * nodes != self.world_size:
                self.notes.append(
                    f"the script started {devices * nodes} ranks later; they were traced as {self.world_size} ranks"
                )
            return
        replace_init_process_group(self._make_first_group)
        self._make_first_group = None
        self.world_size = devices * nodes
        self.notes += [note] if note else []
        self._simulate(devices, nodes)

    def _init_process_group(
        self,
        backend: str | None = None,
        init_method: str | None = None,  # noqa: ARG002 - PyTorch's arguments, by position
        timeout: Any = None,  # noqa: ARG002
        world_size: int = -1,
        *_: Any,
        **__: Any,
    ) -> None:
        self.start(world_size if world_size > 0 else int(os.environ.get("WORLD_SIZE", 1)), 1, "")
        dist.init_process_group(backend)

    def _start_processes(
        self, function: Any, args: tuple[Any, ...] = (), nprocs: int = 1, join: bool = True, *_: Any, **__: Any
    ) -> Any:
        self.start(nprocs, 1, _describe(nprocs))
        self._run_rank(function, self._rank, *args)
        return None if join else SimpleNamespace(join=lambda timeout=None, grace_period=None: True, processes=[])

    def _start_elastic(self, launcher: Any, *args: Any) -> Any:
        config, function = launcher._config, launcher._entrypoint
        if not callable(function):
            return run_command_in_processes(launcher, *args)
        self.start(config.nproc_per_node, config.max_nodes, _describe(config.nproc_per_node * config.max_nodes))
        return {self._rank: self._run_rank(function, *args)}

    def _run_rank(self, function: Any, *args: Any) -> Any:
        """Return the result of the function; None if the rank ends itself with exit code 0."""
        try:
            return function(*args)
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                return None
            self._on_failure(error)
            raise


def _describe(ranks: int) -> str:
    reason = ", as torch.cuda.device_count() is 1" if ranks == 1 else ""
    return f"the script itself starts {number_with_noun(ranks, 'rank')}{reason}; each predicted rank ran in one process"
