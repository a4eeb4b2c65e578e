"""Run the ranks of a remote node for the worker on the first node, and report to that worker.

    TESTBED_RENDEZVOUS="ADDRESS PORT KEY" python -m experiments.training.distributed.node_agent NUMBER NAME

NUMBER is the node's number in the row, counted from 0. NAME is its host name. The environment variable has the address,
the port and the key with which the worker on the first node accepts connections.

The agent writes into the row's folder if this machine can access it through a shared file system, else into a temporary
folder. It ends its ranks if the worker requests this, if the connection to the worker is lost, and on SIGTERM. The exit
code is 0 if the worker has received the outcome.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import FrameType

from experiments.results.rendezvous import RENDEZVOUS_VARIABLE
from experiments.results.schema import RANK_FOLDER, SPEC_FILE
from experiments.training.distributed.local_node import LocalNodeRanks, prefer_oom_kill
from experiments.training.distributed.ranks import CODES_FILE, start_node
from experiments.training.distributed.remote_node import (
    DUMP_STACKS_MESSAGE,
    END_MESSAGE,
    FAILED_MESSAGE,
    NodeAssignment,
    NodeExit,
    pack_files,
)
from provision.temporary import TemporaryFolder

POLL_INTERVAL_S = 0.1


class Terminated(Exception):
    """Raised when this process receives SIGTERM."""


def serve(connection: Connection, node: int, scratch: Path) -> None:
    """Receive an assignment from the worker through ``connection``, run its ranks, and send their outcome and files.

    Raises OSError if the connection is lost.
    """
    assignment = NodeAssignment.model_validate_json(connection.recv_bytes())
    out = _row_folder(assignment, scratch)
    log_path = scratch / "launcher.txt"
    with log_path.open("wb") as log:
        ranks = start_node(assignment, node, out, log.fileno())
        try:
            _monitor(ranks, connection)
        except (Terminated, EOFError):
            pass
        finally:
            ranks.end()
    node_exit = NodeExit(code=ranks.exit_code() or 0, output=log_path.read_text(errors="replace"))
    connection.send_bytes(node_exit.model_dump_json().encode())
    rank_files = [f"{RANK_FOLDER.format(rank)}/*" for rank in ranks.ranks]
    connection.send_bytes(pack_files(out, [*rank_files, CODES_FILE.format(node)]))


def _row_folder(assignment: NodeAssignment, scratch: Path) -> Path:
    """Return the row's folder if this machine has it; else ``scratch``, with the specification written into it."""
    spec = assignment.spec.model_dump_json(indent=2)
    with suppress(OSError):
        if (Path(assignment.out) / SPEC_FILE).read_text() == spec:
            return Path(assignment.out)
    (scratch / SPEC_FILE).write_text(spec)
    return scratch


def _monitor(ranks: LocalNodeRanks, connection: Connection) -> None:
    """Report the first failure of a rank, and obey the worker's messages. Return when the ranks end or should end."""
    failed = False
    while ranks.exit_code() is None:
        if not failed and ranks.any_failed():
            failed = True
            connection.send_bytes(FAILED_MESSAGE)
        if connection.poll(POLL_INTERVAL_S):
            message = connection.recv_bytes()
            if message == END_MESSAGE:
                return
            if message == DUMP_STACKS_MESSAGE:
                ranks.dump_stacks()


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def main(number: str, name: str) -> int:
    """Connect to the worker and run this node's ranks; return 0 if the worker received the outcome, else 1."""
    prefer_oom_kill()
    signal.signal(signal.SIGTERM, _on_sigterm)
    address, port, key = os.environ[RENDEZVOUS_VARIABLE].split()
    with (
        Client((address, int(port)), authkey=bytes.fromhex(key)) as connection,
        TemporaryFolder("ranks") as scratch,
    ):
        connection.send_bytes(json.dumps({"node": int(number), "name": name}).encode())
        try:
            serve(connection, int(number), scratch)
        except OSError as error:
            print(f"{name}: lost the connection to the first node ({error})", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
