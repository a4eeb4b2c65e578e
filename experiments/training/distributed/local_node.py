"""Start, monitor and end ranks on this machine."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from experiments.results.schema import MEASURED_FILE, Measured
from experiments.system import warm_start
from experiments.system.processes import kill_tagged
from experiments.system.signals import die_with_parent
from experiments.training.distributed.shared_memory import remove_shared_memory
from provision.temporary import TemporaryFolder

PID_FILE = "pid"
RANKS_TAG = "TESTBED_RANKS"
KILL_TIMEOUT_S = 15.0


class NodeRanks(Protocol):
    """The ranks of one node of a row. lost_reason: why the node can no longer report; '' while it can."""

    ranks: Sequence[int]
    lost_reason: str

    def exit_code(self) -> int | None:
        """Return the exit code of the launcher; None while it runs."""

    def any_failed(self) -> bool:
        """Return True if a rank or the launcher has failed. Other ranks may still run, waiting for the failed rank."""

    def pids(self) -> dict[int, int]:
        """Return the process id of each rank that has started on this machine, whether or not it still runs."""

    def dump_stacks(self) -> None:
        """Make each rank print the stacks of its threads into its log (through faulthandler)."""

    def end(self) -> None:
        """Kill all processes of the ranks, and remove their temporary files and shared memory.

        Raises TimeoutError with the process ids if processes still run after 15 s.
        """


class LocalNodeRanks:
    """Ranks on this machine, started by ``command``: a Python module and its arguments. See NodeRanks.

    folders: the folder of each rank. log: a file descriptor for the output of the command. environment: additional
    environment variables. has_launcher: whether the command is a launcher; False if it is the only rank.
    """

    lost_reason = ""

    def __init__(
        self,
        command: Sequence[str],
        folders: Mapping[int, Path],
        log: int,
        environment: Mapping[str, str],
        has_launcher: bool = True,
    ) -> None:
        self.ranks: Sequence[int] = tuple(folders)
        self._folders, self._has_launcher = folders, has_launcher
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        self._started = time.time()
        self._scratch = TemporaryFolder("ranks")
        self._tag = f"{os.getpid()}-{time.monotonic_ns()}"
        variables = {RANKS_TAG: self._tag, "TMPDIR": str(self._scratch.path)}
        self._process = warm_start.start_process(
            warm_start.RANK_SOCKET_VARIABLE,
            command,
            {**os.environ, **variables, **environment},
            log,
            wait_for_imports=True,
            preexec=prefer_oom_kill,
        )

    def exit_code(self) -> int | None:
        return self._process.poll()

    def any_failed(self) -> bool:
        return bool(self.exit_code()) or (
            self._has_launcher and any(self._rank_failed(rank, pid) for rank, pid in self.pids().items())
        )

    def pids(self) -> dict[int, int]:
        if not self._has_launcher:
            return {0: self._process.pid}
        pids = {}
        for rank, folder in self._folders.items():
            with suppress(FileNotFoundError, ValueError):
                pids[rank] = int((folder / PID_FILE).read_text())
        return pids

    def dump_stacks(self) -> None:
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def end(self) -> None:
        if running := kill_tagged(RANKS_TAG, self._tag, KILL_TIMEOUT_S):
            raise TimeoutError(f"processes {running} still run {KILL_TIMEOUT_S:.0f} s after they were killed")
        self._process.wait()
        self._scratch.remove()
        if self._has_launcher:
            remove_shared_memory(self._started)

    def _rank_failed(self, rank: int, pid: int) -> bool:
        """Return True if a rank has reported a failure, or has ended without a report."""
        ended = not _is_running(pid)  # checked first, because a rank writes its report before it ends
        measured = read_measured(self._folders[rank])
        return ended if measured is None else measured.outcome != "fits"


def read_measured(folder: Path) -> Measured | None:
    """Return the measurements that a rank has written into its folder at its end; None if there are none."""
    with suppress(FileNotFoundError):
        return Measured.model_validate_json((folder / MEASURED_FILE).read_bytes())
    return None


def prefer_oom_kill() -> None:
    """Make the OOM killer choose this process first, and make this process end when its parent process ends."""
    die_with_parent()
    Path("/proc/self/oom_score_adj").write_text("1000")


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
