"""Interfaces of runners, which run rows (experiments), and of targets, where rows run (see targets.py)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from experiments.errors import InputError
from experiments.inputs.dataset import DataSet
from experiments.inputs.download import DownloadCallback
from experiments.results.run_folder import Run, RunFolder
from experiments.runners.plan import PlannedRow
from experiments.runners.progress import View
from experiments.runners.remaining import ExpectedTime
from experiments.runners.software import Software
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from provision.models import Node


class Runner(Protocol):
    """Runs rows of one run; their results are written to the folder of the run."""

    def run(self, rows: Sequence[PlannedRow]) -> None:
        """Run rows until each has a result. Raises Interrupted on Ctrl-C and SIGTERM."""
        ...


@dataclass(frozen=True)
class RunnerOptions:
    """Options of a runner that are the same at every target.

    worker: module that runs one row. grace_s: seconds from a row's time limit until the runner kills the row.
    host_memory_gib: host memory that all running rows may use together. expected: expected times of rows, by row.
    """

    worker: str
    grace_s: float
    host_memory_gib: float
    expected: Mapping[str, ExpectedTime]


class Target(ABC):
    """Where rows run: a machine like ``node``, or a cluster of nodes like it."""

    max_nodes: int = 1
    """Nodes that one row may use."""
    starts_warm: bool = False
    """Whether rows are forked from warm processes, which have imported the libraries. Else each row imports them."""
    has_queue: bool = False
    """Whether rows are submitted as jobs, which outlive the command and can be cancelled."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @abstractmethod
    def prepare_data(
        self, source: str, sha256: str | None, datasets: Collection[str], on_progress: DownloadCallback
    ) -> DataSet:
        """Prepare the run's data so that rows at this target can read it; return a description of the data.

        sha256: expected checksum of ``source``; None: unknown. datasets: names of the data sets that the rows read.
        on_progress: called with the numbers of downloaded and of all bytes. Raises InputError for unreadable data.
        """

    @abstractmethod
    def check_disk(self, folder: Path, specs: Sequence[RowSpec]) -> None:
        """Raise InputError if the results of ``specs`` do not fit on the disk of ``folder``."""

    @abstractmethod
    def rejection_reason(self, spec: RowSpec, host_memory_gib: float) -> str:
        """Return why the row cannot run at this target, "" if it can. host_memory_gib: host memory of each machine."""

    def rows_per_gpu(self, run: Run, suite: Suite) -> int:
        """Return how many rows use one GPU at a time: 1 without --share-gpus. Raises InputError for invalid sharing."""
        if run.share_gpus:
            raise InputError(
                "--share-gpus: jobs and containers get whole GPUs; allowed with --site local, not with --in-container"
            )
        return 1

    @abstractmethod
    def runner(self, folder: RunFolder, data: DataSet, view: View, options: RunnerOptions) -> Runner:
        """Return the runner that runs rows at this target and writes to ``folder``."""

    def connect(self, print_line: Callable[[str], None]) -> None:  # noqa: B027 (ExpectedTarget has no connection)
        """Connect to the target, before anything is written. ``print_line`` gets a line for each step that takes long.

        Raises an error if rows cannot start at the target now.
        """

    def software(self) -> Software | None:
        """Return the package versions, GPUs and driver of the target, which affect results; None if unknown."""
        return None

    def in_start_order(self, rows: Sequence[PlannedRow], suite: Suite) -> Sequence[PlannedRow]:
        """Return the rows in the order in which they start."""
        return rows

    def cancel(self, folder: RunFolder, view: View) -> list[str]:
        """Cancel the jobs of a run; return the ids of their rows. Only targets with a queue have jobs."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 (not every target has connections)
        """Close connections."""
