"""The ranks of one of a row's nodes, as they run on this machine: started together, watched, ended together."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from experiments.results.schema import MEASURED_FILE, Measured
from experiments.system.processes import die_with_parent, kill_tagged
from experiments.training.distributed.shared_memory import remove_shared_memory

PID_FILE = "pid"
RANKS_VARIABLE = "TESTBED_RANKS"
GONE_WITHIN_S = 15.0


class Part(Protocol):
    """The ranks of one node. lost: why nothing more can be known of them; empty where all is."""

    ranks: Sequence[int]
    lost: str

    def code(self) -> int | None:
        """Exit code of what started the ranks; None while it runs."""

    def failed(self) -> bool:
        """True when a rank, or what started it, has ended badly; the others may live, and wait for it in vain."""

    def pids(self) -> dict[int, int]:
        """The processes of those ranks that have begun on this machine, whether they live or not."""

    def dump_stacks(self) -> None:
        """Have each rank print the stacks of its threads into its log (it registered faulthandler)."""

    def end(self) -> None:
        """End all that is left of the ranks: processes, temporary files, shared memory.

        Raises TimeoutError naming the processes that would not go within 15 s.
        """


class LocalNodeRanks:
    """Ranks on this machine; ``folders`` are their own, by rank. ``command`` is of Python and starts them.

    alone: it is the only rank itself.
    """

    lost = ""

    def __init__(
        self,
        command: Sequence[str],
        folders: Mapping[int, Path],
        log: int,
        environment: Mapping[str, str],
        alone: bool = False,
    ) -> None:
        self.ranks: Sequence[int] = tuple(folders)
        self._folders, self._alone = folders, alone
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        self._began = time.time()
        self._scratch = tempfile.mkdtemp(prefix="testbed-")
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        own = {RANKS_VARIABLE: self._mark, "TMPDIR": self._scratch}
        self._process = _start(command, log, {**own, **environment})

    def code(self) -> int | None:
        return self._process.poll()

    def failed(self) -> bool:
        return bool(self.code()) or (not self._alone and any(self._over(*begun) for begun in self.pids().items()))

    def pids(self) -> dict[int, int]:
        if self._alone:
            return {0: self._process.pid}
        found = {}
        for rank, folder in self._folders.items():
            with suppress(FileNotFoundError, ValueError):
                found[rank] = int((folder / PID_FILE).read_text())
        return found

    def dump_stacks(self) -> None:
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def end(self) -> None:
        if left := kill_tagged(RANKS_VARIABLE, self._mark, GONE_WITHIN_S):
            raise TimeoutError(f"processes {left} did not end within {GONE_WITHIN_S:.0f} s of being killed")
        self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
        if not self._alone:
            remove_shared_memory(self._began)

    def _over(self, rank: int, pid: int) -> bool:
        """True when a rank has failed: it says so, or is gone without a word."""
        gone = not _alive(pid)
        measured = measured_in(self._folders[rank])
        return gone if measured is None else measured.outcome != "fits"


def measured_in(folder: Path) -> Measured | None:
    """What a rank wrote into its folder at its end; None when it did not come so far."""
    with suppress(FileNotFoundError):
        return Measured.model_validate_json((folder / MEASURED_FILE).read_bytes())
    return None


def prefer_oom_kill() -> None:
    """Have this process die with its parent, and before all others when the host's memory runs out."""
    die_with_parent()
    Path("/proc/self/oom_score_adj").write_text("1000")


def _start(command: Sequence[str], log: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-u", *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=prefer_oom_kill,
    )


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
