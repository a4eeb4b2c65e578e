"""The processes that train a row on this machine: one, or several ranks under a launcher for each of the row's nodes.

Files of each rank lie in the row's folder, of several ranks in rank-0, rank-1 and so on.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path

import psutil

from experiments.family import end_family
from experiments.parent import die_with_parent
from experiments.recipe import RowSpec
from experiments.result import LOG_FILE, MEASURED_FILE, RANK_FOLDER, SPEC_FILE, Measured
from experiments.training.leftovers import remove_shared_memory

TRAINER = "experiments.training.rank"
STARTER = "experiments.training.launcher"
LAUNCHER = "TESTBED_LAUNCHER"
CODES_FILE = "codes-{}.json"
PID_FILE = "pid"
ADDRESS = "127.0.0.1"
PORTS = (20_000, 32_000)
MARK = "TESTBED_RANKS"
GONE_WITHIN_S = 15.0
STACKS_WITHIN_S = 1.0


class Ranks:
    """The ranks of one row, started; what they print goes to ``log``, a file descriptor, or to a log of each rank."""

    def __init__(self, spec: RowSpec, out: Path, log: int) -> None:
        self.count = spec.settings.ranks
        self._out = out
        self._log = log
        self._began = time.time()
        self._scratch = tempfile.mkdtemp(prefix="testbed-")
        self._own = {MARK: f"{os.getpid()}-{time.monotonic_ns()}", "TMPDIR": self._scratch}
        arguments = [str(out / SPEC_FILE), str(out)]
        if self.count == 1:
            self._started = [_start(["-m", TRAINER, *arguments], log, self._own)]
            return
        for rank in range(self.count):
            self.folder(rank).mkdir()
        settings, port = spec.settings, str(free_port())
        self._started = [
            _start(["-m", STARTER, str(node), ADDRESS, port, TRAINER, *arguments], log, self._own | environment)
            for node, environment in enumerate(environments(os.environ, settings.nodes, settings.devices))
        ]

    def folder(self, rank: int) -> Path:
        """Where the files of a rank are."""
        return self._out if self.count == 1 else self._out / RANK_FOLDER.format(rank)

    def log(self, rank: int) -> Path:
        """What a rank printed; where it has not begun, what its launcher printed."""
        own = self.folder(rank) / LOG_FILE
        return own if own.exists() else self._out / LOG_FILE

    def ended_at(self, rank: int) -> float:
        """When a rank wrote what it measured, in seconds since 1970; infinite where it did not."""
        path = self.folder(rank) / MEASURED_FILE
        return path.stat().st_mtime if path.exists() else inf

    def pids(self) -> dict[int, int]:
        """The process of each rank that has begun, whether it lives or not."""
        if self.count == 1:
            return {0: self._started[0].pid}
        found = {}
        for rank in range(self.count):
            with suppress(FileNotFoundError, ValueError):
                found[rank] = int((self.folder(rank) / PID_FILE).read_text())
        return found

    def ended(self) -> bool:
        """True when nothing of the row runs any more by itself."""
        return all(process.poll() is not None for process in self._started)

    def failed(self) -> bool:
        """True when a rank, or a node's launcher, has ended badly; the others may live, and wait for it in vain."""
        if any(process.poll() for process in self._started):
            return True
        return any(self._over(rank, pid) for rank, pid in self.pids().items()) if self.count > 1 else False

    def measured(self, rank: int) -> Measured | None:
        """What a rank wrote at its end; None when it did not come so far."""
        with suppress(FileNotFoundError):
            return Measured.model_validate_json((self.folder(rank) / MEASURED_FILE).read_bytes())
        return None

    def codes(self) -> dict[int, int]:
        """Exit codes of the ranks, as far as launchers tell of those that did not end well; below 0: the signal.

        Where a launcher broke before it could tell, its own code stands for all ranks.
        """
        if self.count == 1:
            return {0: self._started[0].returncode}
        found: dict[int, int] = {}
        for node in range(len(self._started)):
            with suppress(FileNotFoundError):
                codes = json.loads((self._out / CODES_FILE.format(node)).read_text())
                found |= {int(rank): code for rank, code in codes.items()}
        broken = max(process.returncode for process in self._started)
        return dict.fromkeys(range(self.count), broken) if broken > 0 and not found else found

    def dump_stacks(self) -> None:
        """Have each rank print the stacks of its threads into its log (it registered faulthandler)."""
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(STACKS_WITHIN_S)

    def end(self) -> None:
        """End all that is left of the row: processes, temporary files, shared memory.

        Raises TimeoutError naming the processes that would not go within 15 s.
        """
        if left := end_family(MARK, self._own[MARK], GONE_WITHIN_S):
            raise TimeoutError(f"processes {left} did not end within {GONE_WITHIN_S:.0f} s of being killed")
        for process in self._started:
            process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
        if self.count > 1:
            remove_shared_memory(self._began)
            self._gather_logs()

    def _over(self, rank: int, pid: int) -> bool:
        """True when a rank has failed: it says so, or is gone without a word."""
        gone = not _alive(pid)
        measured = self.measured(rank)
        return gone if measured is None else measured.outcome != "fits"

    def _gather_logs(self) -> None:
        """Append the log of each rank to the row's, each under a line that says whose it is."""
        for rank in range(self.count):
            path = self.folder(rank) / LOG_FILE
            if path.exists():
                os.write(self._log, f"\n==== rank {rank} ====\n".encode() + path.read_bytes())


def environments(base: Mapping[str, str], nodes: int, devices: int) -> list[dict[str, str]]:
    """What the launcher of each node finds in its environment, all nodes being on this machine.

    Each node has its own part of the visible GPUs, each rank its own part of the processor's threads.
    """
    everyone = ",".join(map(str, range(nodes * devices)))
    gpus = [gpu for gpu in base.get("CUDA_VISIBLE_DEVICES", everyone).split(",") if gpu]
    threads = int(base.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    shared = {"OMP_NUM_THREADS": str(max(1, threads // (nodes * devices)))}
    if nodes == 1 or not gpus:
        return [shared] * nodes
    parts = [gpus[node * devices : (node + 1) * devices] for node in range(nodes)]
    return [shared | {"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to connections.

    Drawn from the system's randomness: trainings seed that of Python, and rows side by side would draw alike.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((ADDRESS, port))
            return port


def go_first() -> None:
    """Have this process die with its parent, and before all others when the host's memory runs out."""
    die_with_parent()
    Path("/proc/self/oom_score_adj").write_text("1000")


def _start(arguments: list[str], log: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-u", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=go_first,
    )


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
