"""The ranks of a row's further nodes, which are other machines; node_agent starts them there.

The first node says in a file where it is met, and by which key; whatever starts the others brings them that line. Each
asks for its order, says when a rank has failed, and at its end hands over what its ranks wrote.
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

from experiments.results.rendezvous import EXIT_FILE, LOG_FILE, RENDEZVOUS_FILE
from experiments.results.schema import Record
from experiments.suites.row_spec import RowSpec
from experiments.training.distributed.local_node import GONE_WITHIN_S

FAILED, STACKS, END = b"failed", b"stacks", b"end"
TIMEOUT_SLACK_S = 5.0


class NodeAssignment(Record):
    """What a further node is to start: the module of a rank, that of its launcher, and where all ranks meet.

    out is the row's folder on the first node.
    """

    spec: RowSpec
    trainer: str
    starter: str
    address: str
    port: str
    out: str


class Ended(Record):
    """How a node's launcher ended, and what it printed. Its ranks' files follow."""

    code: int
    said: str


class RemoteNodeRanks:
    """The ranks of the node of that number; see Part. What they wrote comes into ``out``, what is said to ``log``."""

    def __init__(self, node: int, ranks: Sequence[int], out: Path, log: int, folder: Path) -> None:
        self.node, self.ranks = node, ranks
        self.lost = ""
        self._out, self._log, self._folder = out, log, folder
        self._name = f"node {node}"
        self._line: Connection | None = None
        self._code: int | None = None
        self._failed = False

    def on_connect(self, line: Connection, name: str) -> None:
        """The node has come, by that line."""
        self._name = f"node {self.node} ({name})"
        self._line = line

    def code(self) -> int | None:
        self._hear()
        return self._code

    def failed(self) -> bool:
        return bool(self.code()) or self._failed

    def pids(self) -> dict[int, int]:
        return {}

    def dump_stacks(self) -> None:
        self._tell(STACKS)

    def end(self) -> None:
        self._tell(END)
        until = time.monotonic() + GONE_WITHIN_S + TIMEOUT_SLACK_S
        while self.code() is None and self._line and time.monotonic() < until:
            time.sleep(0.05)
        if self._code is None:
            self._lose("had not come" if self._line is None else "did not say how its ranks ended")
        if self._line:
            self._line.close()

    def _tell(self, word: bytes) -> None:
        if self._line and self._code is None:
            with suppress(OSError):
                self._line.send_bytes(word)

    def _hear(self) -> None:
        if self._line is None and (self._folder / EXIT_FILE).exists():
            self._lose(f"did not take part: {_last_line(self._folder / LOG_FILE)}")
        try:
            while self._line and self._code is None and self._line.poll():
                word = self._line.recv_bytes()
                if word == FAILED:
                    self._failed = True
                else:
                    self._take(Ended.model_validate_json(word), self._line.recv_bytes())
        except (EOFError, OSError):
            self._lose("is no longer heard of")

    def _take(self, ended: Ended, files: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            for member in archive:
                path, content = self._out / member.name, archive.extractfile(member)
                assert content
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content.read())
                os.utime(path, (member.mtime, member.mtime))
        if ended.said:
            os.write(self._log, f"\n==== launcher of {self._name} ====\n{ended.said}".encode())
        self._code = ended.code

    def _lose(self, why: str) -> None:
        self.lost, self._code = f"{self._name} {why}", 1


def open_rendezvous(assignment: NodeAssignment, parts: Sequence[RemoteNodeRanks], folder: Path) -> None:
    """Wait beside this thread for the nodes of ``parts``; a file in ``folder`` says where."""
    key = secrets.token_bytes(32)
    listener = Listener(("0.0.0.0", 0), backlog=len(parts), authkey=key)
    Thread(target=_accept, args=(listener, assignment, parts), daemon=True).start()
    partial = folder / f"{RENDEZVOUS_FILE}.part"
    partial.touch(mode=0o600)
    partial.write_text(f"{assignment.address} {listener.address[1]} {key.hex()}\n")
    partial.replace(folder / RENDEZVOUS_FILE)


def packed(out: Path, patterns: Sequence[str]) -> bytes:
    """The files under ``out`` that match, as one archive with their times."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as files:
        for path in sorted(path for pattern in patterns for path in out.glob(pattern) if path.is_file()):
            files.add(path, str(path.relative_to(out)))
    return archive.getvalue()


def _accept(listener: Listener, assignment: NodeAssignment, parts: Sequence[RemoteNodeRanks]) -> None:
    waited = {part.node: part for part in parts}
    with listener:
        while waited:
            with suppress(AuthenticationError, EOFError, OSError):
                line = listener.accept()
                asked = json.loads(line.recv_bytes())
                line.send_bytes(assignment.model_dump_json().encode())
                waited.pop(asked["node"]).on_connect(line, asked["name"])


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "it printed nothing"
