"""Monitor the ranks of a row on other machines, where node_agent starts them.

The worker runs on the first node and writes its address and a key into a rendezvous file. The system that starts the
row passes this file to the other nodes. Each agent connects, receives its assignment, reports a failed rank at once,
and sends the files of its ranks at the end.
"""

import io
import json
import os
import secrets
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from threading import Thread

from experiments.results.rendezvous import AGENT_LOG_FILE, EXIT_FILE, RENDEZVOUS_FILE
from experiments.results.schema import Record
from experiments.suites.row_spec import RowSpec
from experiments.training.distributed.local_node import KILL_TIMEOUT_S
from experiments.training.failures import last_line

FAILED_MESSAGE, DUMP_STACKS_MESSAGE, END_MESSAGE = b"failed", b"stacks", b"end"
TIMEOUT_SLACK_S = 5.0


class NodeAssignment(Record):
    """What a node needs to start its ranks.

    rank_module, launcher_module: Python modules of a rank and of the launcher. address, port: where all ranks connect.
    out: the row's folder on the first node.
    """

    spec: RowSpec
    rank_module: str
    launcher_module: str
    address: str
    port: str
    out: str


class NodeExit(Record):
    """Exit code and output of a node's launcher. The files of its ranks follow in the next message."""

    code: int
    output: str


class RemoteNodeRanks:
    """The ranks on one remote node. See NodeRanks.

    node: number of the node. ranks: numbers of its ranks. out: folder for the files of the ranks. log: file descriptor
    for the output of the launcher. folder: the rendezvous folder.
    """

    def __init__(self, node: int, ranks: Sequence[int], out: Path, log: int, folder: Path) -> None:
        self.node, self.ranks = node, ranks
        self.lost_reason = ""
        self._out, self._log, self._folder = out, log, folder
        self._name = f"node {node}"
        self._connection: Connection | None = None
        self._code: int | None = None
        self._failed = False

    def on_connect(self, connection: Connection, name: str) -> None:
        """Store the node's connection. name: host name of the node."""
        self._name = f"node {self.node} ({name})"
        self._connection = connection

    def exit_code(self) -> int | None:
        self._update_status()
        return self._code

    def any_failed(self) -> bool:
        return bool(self.exit_code()) or self._failed

    def pids(self) -> dict[int, int]:
        return {}

    def dump_stacks(self) -> None:
        self._send(DUMP_STACKS_MESSAGE)

    def end(self) -> None:
        self._send(END_MESSAGE)
        deadline = time.monotonic() + KILL_TIMEOUT_S + TIMEOUT_SLACK_S
        while self.exit_code() is None and self._connection and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._code is None:
            self._mark_lost("did not connect" if self._connection is None else "did not report how its ranks ended")
        if self._connection:
            self._connection.close()

    def _send(self, message: bytes) -> None:
        if self._connection and self._code is None:
            with suppress(OSError):
                self._connection.send_bytes(message)

    def _update_status(self) -> None:
        """Process the node's messages, and check whether it has ended without connecting."""
        if self._connection is None and (self._folder / EXIT_FILE).exists():
            self._mark_lost(f"ended without connecting: {_last_agent_line(self._folder / AGENT_LOG_FILE)}")
        try:
            while self._connection and self._code is None and self._connection.poll():
                message = self._connection.recv_bytes()
                if message == FAILED_MESSAGE:
                    self._failed = True
                else:
                    self._finish(NodeExit.model_validate_json(message), self._connection.recv_bytes())
        except (EOFError, OSError):
            self._mark_lost("lost its connection")

    def _finish(self, node_exit: NodeExit, files: bytes) -> None:
        """Unpack the files of the ranks, log the launcher's output, and store its exit code."""
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            for member in archive:
                path, content = self._out / member.name, archive.extractfile(member)
                assert content
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content.read())
                os.utime(path, (member.mtime, member.mtime))
        if node_exit.output:
            os.write(self._log, f"\n==== launcher of {self._name} ====\n{node_exit.output}".encode())
        self._code = node_exit.code

    def _mark_lost(self, reason: str) -> None:
        self.lost_reason, self._code = f"{self._name} {reason}", 1


def open_rendezvous(assignment: NodeAssignment, nodes: Sequence[RemoteNodeRanks], folder: Path) -> None:
    """Accept the connections of ``nodes`` in a background thread; write address and key into a file in ``folder``."""
    key = secrets.token_bytes(32)
    listener = Listener(("0.0.0.0", 0), backlog=len(nodes), authkey=key)  # noqa: S104 - authenticated by the key
    Thread(target=_accept_nodes, args=(listener, assignment, nodes), daemon=True).start()
    partial = folder / f"{RENDEZVOUS_FILE}.part"
    partial.touch(mode=0o600)
    partial.write_text(f"{assignment.address} {listener.address[1]} {key.hex()}\n")
    partial.replace(folder / RENDEZVOUS_FILE)


def pack_files(out: Path, patterns: Sequence[str]) -> bytes:
    """Return a tar archive of the files under ``out`` that match ``patterns``, with their modification times."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as files:
        for path in sorted(path for pattern in patterns for path in out.glob(pattern) if path.is_file()):
            files.add(path, str(path.relative_to(out)))
    return archive.getvalue()


def _accept_nodes(listener: Listener, assignment: NodeAssignment, nodes: Sequence[RemoteNodeRanks]) -> None:
    missing = {node.node: node for node in nodes}
    with listener:
        while missing:
            with suppress(AuthenticationError, EOFError, OSError):
                connection = listener.accept()
                greeting = json.loads(connection.recv_bytes())
                connection.send_bytes(assignment.model_dump_json().encode())
                missing.pop(greeting["node"]).on_connect(connection, greeting["name"])


def _last_agent_line(path: Path) -> str:
    """Return the last line in the log of the agents."""
    output = path.read_text(errors="replace") if path.exists() else ""
    return last_line(output, default="it printed nothing")
