"""Runs the ranks of one further node of a row, for the worker on the first one, which is told what came of them.

    TESTBED_RENDEZVOUS="ADDRESS PORT KEY" python -m experiments.training.distributed.node_agent NUMBER NAME

Writes into the row's folder where this machine sees it too, else into one of its own. Ends its ranks when the worker
says so or is gone, and when it is told to end itself. Exit code 0 when the worker has heard how they ended.
"""

import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import FrameType

from experiments.results.rendezvous import RENDEZVOUS
from experiments.results.schema import RANK_FOLDER, SPEC_FILE
from experiments.training.distributed.local_node import LocalNodeRanks, prefer_oom_kill
from experiments.training.distributed.ranks import CODES_FILE, launched
from experiments.training.distributed.remote_node import END, FAILED, STACKS, Ended, NodeAssignment, packed

TICK_S = 0.1


class Stopped(Exception):
    """This process is to end."""


def serve(line: Connection, node: int, scratch: Path) -> None:
    """Run what the worker at the other end of ``line`` orders; OSError when it is gone."""
    assignment = NodeAssignment.model_validate_json(line.recv_bytes())
    out = _folder(assignment, scratch)
    log = scratch / "launcher.txt"
    with log.open("wb") as said:
        part = launched(assignment, node, out, said.fileno())
        try:
            _watch(part, line)
        except (Stopped, EOFError):
            pass
        finally:
            part.end()
    ended = Ended(code=part.code() or 0, said=log.read_text(errors="replace"))
    line.send_bytes(ended.model_dump_json().encode())
    folders = [f"{RANK_FOLDER.format(rank)}/*" for rank in part.ranks]
    line.send_bytes(packed(out, [*folders, CODES_FILE.format(node)]))


def _folder(assignment: NodeAssignment, scratch: Path) -> Path:
    """The row's folder, where this machine sees it; else ``scratch``, made into one."""
    spec = assignment.spec.model_dump_json(indent=2)
    with suppress(OSError):
        if (Path(assignment.out) / SPEC_FILE).read_text() == spec:
            return Path(assignment.out)
    (scratch / SPEC_FILE).write_text(spec)
    return scratch


def _watch(part: LocalNodeRanks, line: Connection) -> None:
    """Until the ranks have ended, or are to end."""
    failed = False
    while part.code() is None:
        if not failed and part.failed():
            failed = True
            line.send_bytes(FAILED)
        if line.poll(TICK_S):
            told = line.recv_bytes()
            if told == END:
                return
            if told == STACKS:
                part.dump_stacks()


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def main(number: str, name: str) -> int:
    prefer_oom_kill()
    signal.signal(signal.SIGTERM, _stop)
    address, port, key = os.environ[RENDEZVOUS].split()
    with (
        Client((address, int(port)), authkey=bytes.fromhex(key)) as line,
        tempfile.TemporaryDirectory(prefix="testbed-") as scratch,
    ):
        line.send_bytes(json.dumps({"node": int(number), "name": name}).encode())
        try:
            serve(line, int(number), Path(scratch))
        except OSError as problem:
            print(f"{name}: the first node is gone ({problem})", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
