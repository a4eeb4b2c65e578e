"""Start and monitor the ranks of a row: a single process, or one launcher per node, which starts the node's ranks.

If the environment names a rendezvous folder (see remote_node), this machine is the first of several nodes. Otherwise,
all nodes of the row are on this machine. A single rank writes into the row's folder; several ranks write into the
folders rank-0, rank-1 and so on.
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
from experiments.results.schema import LOG_FILE, MEASURED_FILE, RANK_FOLDER, REJECTION_FILE, SPEC_FILE, Measured
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.distributed.local_node import LocalNodeRanks, NodeRanks, read_measured
from experiments.training.distributed.remote_node import NodeAssignment, RemoteNodeRanks, open_rendezvous

RANK_MODULE = "experiments.training.rank"
LAUNCHER_MODULE = "experiments.training.distributed.launcher"
LAUNCHER_PID_VARIABLE = "TESTBED_LAUNCHER"
CODES_FILE = "codes-{}.json"
LOCAL_ADDRESS = "127.0.0.1"
PORT_RANGE = (20_000, 32_000)
STACK_DUMP_WAIT_S = 1.0


class Ranks:
    """The ranks of one row, which the constructor starts. out: the row's folder. log: file descriptor of its log."""

    def __init__(self, spec: RowSpec, out: Path, log: int) -> None:
        self.count = spec.settings.ranks
        self._out = out
        self._log = log
        self._nodes = start_ranks(spec, out, log)

    def folder(self, rank: int) -> Path:
        """Return the folder of a rank."""
        return self._out if self.count == 1 else self._out / RANK_FOLDER.format(rank)

    def log_path(self, rank: int) -> Path:
        """Return the log of a rank, or of its launcher if the rank has not started."""
        path = self.folder(rank) / LOG_FILE
        return path if path.exists() else self._out / LOG_FILE

    def ended_at(self, rank: int) -> float:
        """Return the time at which a rank wrote its measurements, in seconds since 1970; infinite if it wrote none."""
        path = self.folder(rank) / MEASURED_FILE
        return path.stat().st_mtime if path.exists() else inf

    def pids(self) -> dict[int, int]:
        """Return the process id of each rank that has started on this machine, whether or not it still runs."""
        return {rank: pid for node in self._nodes for rank, pid in node.pids().items()}

    def all_ended(self) -> bool:
        """Return True if the launchers of all nodes have ended."""
        return all(node.exit_code() is not None for node in self._nodes)

    def any_failed(self) -> bool:
        """Return True if a rank or a launcher has failed. Other ranks may still run, waiting for the failed rank."""
        return any(node.any_failed() for node in self._nodes)

    def measurements(self, rank: int) -> Measured | None:
        """Return the measurements that a rank has written at its end; None if there are none."""
        return read_measured(self.folder(rank))

    def rejection_reason(self, rank: int) -> str:
        """Return why a rank rejected its input; '' if it did not.

        The reason is in a file, because the exit code of the rank may be lost when another rank fails.
        """
        path = self.folder(rank) / REJECTION_FILE
        return path.read_text() if path.exists() else ""

    def lost_reason(self, rank: int) -> str:
        """Return why the node of a rank can no longer report; '' while it can."""
        return next(node.lost_reason for node in self._nodes if rank in node.ranks)

    def exit_codes(self) -> dict[int, int]:
        """Return the exit codes of failed ranks, as reported by launchers; negative for a signal.

        If a launcher failed before it could report, its own exit code is used for all its ranks.
        """
        codes: dict[int, int] = {}
        for number, node in enumerate(self._nodes):
            code, report = node.exit_code() or 0, self._out / CODES_FILE.format(number)
            if report.exists():
                codes |= {int(rank): rank_code for rank, rank_code in json.loads(report.read_text()).items()}
            elif self.count == 1 or (code > 0 and not node.lost_reason):
                codes |= dict.fromkeys(node.ranks, code)
        return codes

    def dump_stacks(self) -> None:
        """Make each rank print the stacks of its threads into its log, and wait STACK_DUMP_WAIT_S for that."""
        for node in self._nodes:
            node.dump_stacks()
        time.sleep(STACK_DUMP_WAIT_S)

    def end(self) -> None:
        """Kill all processes of the row on every node and clean up; see NodeRanks.end."""
        for node in reversed(self._nodes):
            node.end()
        if self.count > 1:
            self._append_logs()

    def _append_logs(self) -> None:
        """Append the log of each rank to the row's log, below a line with the rank's number."""
        for rank in range(self.count):
            path = self.folder(rank) / LOG_FILE
            if path.exists():
                os.write(self._log, f"\n==== rank {rank} ====\n".encode() + path.read_bytes())


def start_ranks(spec: RowSpec, out: Path, log: int) -> list[NodeRanks]:
    """Start the row's ranks and return them by node."""
    settings = spec.settings
    if settings.ranks == 1:
        command = [RANK_MODULE, str(out / SPEC_FILE), str(out)]
        return [LocalNodeRanks(command, {0: out}, log, {}, has_launcher=False)]
    folder = os.environ.get(rendezvous.FOLDER_VARIABLE)
    assignment = NodeAssignment(
        spec=spec,
        rank_module=RANK_MODULE,
        launcher_module=LAUNCHER_MODULE,
        address=os.environ[rendezvous.ADDRESS_VARIABLE] if folder else LOCAL_ADDRESS,
        port=str(free_port()),
        out=str(out.resolve()),
    )
    if folder is None:
        environments = launcher_environments(os.environ, settings.nodes, settings.devices)
        return [
            _start_launcher(assignment, node, out, log, environment) for node, environment in enumerate(environments)
        ]
    remote_nodes = [
        RemoteNodeRanks(node, ranks_on_node(settings, node), out, log, Path(folder))
        for node in range(1, settings.nodes)
    ]
    open_rendezvous(assignment, remote_nodes, Path(folder))
    return [start_node(assignment, 0, out, log), *remote_nodes]


def start_node(assignment: NodeAssignment, node: int, out: Path, log: int) -> LocalNodeRanks:
    """Start the ranks of node number ``node``, which is this machine, and return them."""
    (environment,) = launcher_environments(os.environ, 1, assignment.spec.settings.devices)
    name = find_interface(assignment.address)
    interfaces = {key: os.environ.get(key, name) for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    return _start_launcher(assignment, node, out, log, {**environment, **interfaces})


def ranks_on_node(settings: Settings, node: int) -> range:
    """Return the numbers of the ranks on node number ``node``."""
    return range(node * settings.devices, (node + 1) * settings.devices)


def launcher_environments(base: Mapping[str, str], nodes: int, devices: int) -> list[dict[str, str]]:
    """Return the additional environment variables of each launcher, for ``nodes`` nodes that are on this machine.

    base: this process's environment. devices: number of ranks per node. The nodes share the visible GPUs evenly. All
    ranks share the CPU threads evenly.
    """
    all_gpus = ",".join(map(str, range(nodes * devices)))
    gpus = [gpu for gpu in base.get("CUDA_VISIBLE_DEVICES", all_gpus).split(",") if gpu]
    threads = int(base.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    common = {"OMP_NUM_THREADS": str(max(1, threads // (nodes * devices)))}
    if nodes == 1 or not gpus:
        return [common] * nodes
    shares = [gpus[node * devices : (node + 1) * devices] for node in range(nodes)]
    return [common | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def find_interface(address: str) -> str:
    """Return the network interface through which this machine reaches ``address``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 1))
        local_address = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, addresses in interfaces if local_address in [entry.address for entry in addresses])


def free_port() -> int:
    """Return a port that no program listens on, below the range from which Linux chooses the ports of connections.

    Uses random numbers of the operating system. With Python's random numbers, which training code seeds, parallel rows
    would choose the same ports.
    """
    while True:
        port = random.SystemRandom().randrange(*PORT_RANGE)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def _start_launcher(
    assignment: NodeAssignment, node: int, out: Path, log: int, environment: Mapping[str, str]
) -> LocalNodeRanks:
    rendezvous_arguments = [str(node), assignment.address, assignment.port]
    rank_arguments = [assignment.rank_module, str(out / SPEC_FILE), str(out)]
    command = [assignment.launcher_module, *rendezvous_arguments, *rank_arguments]
    folders = {rank: out / RANK_FOLDER.format(rank) for rank in ranks_on_node(assignment.spec.settings, node)}
    return LocalNodeRanks(command, folders, log, environment)
