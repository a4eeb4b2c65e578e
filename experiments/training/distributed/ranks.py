"""The processes that train a row: one, or several ranks under a launcher for each of the row's nodes.

All nodes are on this machine, unless the environment says where further ones are met (away.py); then the first is.
Files of each rank lie in the row's folder, of several ranks in rank-0, rank-1 and so on.
"""

import json
import os
import random
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path

import psutil

from experiments.results import rendezvous
from experiments.results.schema import LOG_FILE, MEASURED_FILE, RANK_FOLDER, SPEC_FILE, Measured
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.distributed import remote_node
from experiments.training.distributed.local_node import LocalNodeRanks, Part, measured_in

TRAINER = "experiments.training.rank"
STARTER = "experiments.training.distributed.launcher"
LAUNCHER = "TESTBED_LAUNCHER"
CODES_FILE = "codes-{}.json"
ADDRESS = "127.0.0.1"
PORTS = (20_000, 32_000)
STACKS_WITHIN_S = 1.0


class Ranks:
    """The ranks of one row, started; what they print goes to ``log``, a file descriptor, or to a log of each rank."""

    def __init__(self, spec: RowSpec, out: Path, log: int) -> None:
        self.count = spec.settings.ranks
        self._out = out
        self._log = log
        self._parts = parts(spec, out, log)

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
        """The process of each rank that has begun on this machine, whether it lives or not."""
        return {rank: pid for part in self._parts for rank, pid in part.pids().items()}

    def ended(self) -> bool:
        """True when nothing of the row runs any more by itself."""
        return all(part.code() is not None for part in self._parts)

    def failed(self) -> bool:
        """True when a rank, or a node's launcher, has ended badly; the others may live, and wait for it in vain."""
        return any(part.failed() for part in self._parts)

    def measured(self, rank: int) -> Measured | None:
        """What a rank wrote at its end; None when it did not come so far."""
        return measured_in(self.folder(rank))

    def lost(self, rank: int) -> str:
        """Why nothing is known of a rank's end: what became of its node; empty where that is known."""
        return next(part.lost for part in self._parts if rank in part.ranks)

    def codes(self) -> dict[int, int]:
        """Exit codes of the ranks, as far as launchers tell of those that did not end well; below 0: the signal.

        Where a launcher broke before it could tell, its own code stands for its ranks.
        """
        found: dict[int, int] = {}
        for node, part in enumerate(self._parts):
            code, told = part.code() or 0, self._out / CODES_FILE.format(node)
            if told.exists():
                found |= {int(rank): code for rank, code in json.loads(told.read_text()).items()}
            elif self.count == 1 or (code > 0 and not part.lost):
                found |= dict.fromkeys(part.ranks, code)
        return found

    def dump_stacks(self) -> None:
        """Have each rank print the stacks of its threads into its log."""
        for part in self._parts:
            part.dump_stacks()
        time.sleep(STACKS_WITHIN_S)

    def end(self) -> None:
        """End all that is left of the row, on every node; see Part.end."""
        for part in reversed(self._parts):
            part.end()
        if self.count > 1:
            self._gather_logs()

    def _gather_logs(self) -> None:
        """Append the log of each rank to the row's, each under a line that says whose it is."""
        for rank in range(self.count):
            path = self.folder(rank) / LOG_FILE
            if path.exists():
                os.write(self._log, f"\n==== rank {rank} ====\n".encode() + path.read_bytes())


def parts(spec: RowSpec, out: Path, log: int) -> list[Part]:
    """The row's ranks, started, by their nodes."""
    settings = spec.settings
    if settings.ranks == 1:
        return [LocalNodeRanks(["-m", TRAINER, str(out / SPEC_FILE), str(out)], {0: out}, log, {}, alone=True)]
    folder = os.environ.get(rendezvous.FOLDER)
    address = os.environ[rendezvous.ADDRESS] if folder else ADDRESS
    assignment = remote_node.NodeAssignment(
        spec=spec, trainer=TRAINER, starter=STARTER, address=address, port=str(free_port()), out=str(out.resolve())
    )
    if folder is None:
        each = environments(os.environ, settings.nodes, settings.devices)
        return [_launched(assignment, node, out, log, own) for node, own in enumerate(each)]
    others = [
        remote_node.RemoteNodeRanks(node, ranks_of(settings, node), out, log, Path(folder))
        for node in range(1, settings.nodes)
    ]
    remote_node.open_rendezvous(assignment, others, Path(folder))
    return [launched(assignment, 0, out, log), *others]


def launched(assignment: remote_node.NodeAssignment, node: int, out: Path, log: int) -> LocalNodeRanks:
    """The ranks of one node, that has this machine to itself, started."""
    (own,) = environments(os.environ, 1, assignment.spec.settings.devices)
    name = interface_to(assignment.address)
    interfaces = {key: os.environ.get(key, name) for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    return _launched(assignment, node, out, log, {**own, **interfaces})


def ranks_of(settings: Settings, node: int) -> range:
    """The ranks of a node."""
    return range(node * settings.devices, (node + 1) * settings.devices)


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
    shares = [gpus[node * devices : (node + 1) * devices] for node in range(nodes)]
    return [shared | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def interface_to(address: str) -> str:
    """The network interface by which this machine reaches ``address``, its own or another's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 1))
        own = probe.getsockname()[0]
    names = psutil.net_if_addrs().items()
    return next(name for name, kept in names if own in [one.address for one in kept])


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to connections.

    Drawn from the system's randomness: trainings seed that of Python, and rows side by side would draw alike.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def _launched(
    assignment: remote_node.NodeAssignment, node: int, out: Path, log: int, environment: Mapping[str, str]
) -> LocalNodeRanks:
    where = [str(node), assignment.address, assignment.port]
    command = ["-m", assignment.starter, *where, assignment.trainer, str(out / SPEC_FILE), str(out)]
    folders = {rank: out / RANK_FOLDER.format(rank) for rank in ranks_of(assignment.spec.settings, node)}
    return LocalNodeRanks(command, folders, log, environment)
