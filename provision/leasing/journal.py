"""What is held, on disk: each act's intent before it, its outcome after it. A run killed anywhere finds its way by it.

A file of JSON lines in the folder ``$TESTBED_LEDGER``, else ``llm-testbed`` under ``$XDG_STATE_HOME`` or
``~/.local/state``.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from provision.errors import BadJournal
from provision.ssh.login import Login

VERSION = 1
FIELDS = {"mark": "tag", "act": "operation"}
"""Fields by the names that they have on disk."""
Event = Literal["opened", "intent", "done", "failed", "reached", "closed"]


class Operation(StrEnum):
    """Everything that is done outside. Sites do nothing that is not one of these."""

    CREATE_LEASE = "create lease"
    UPLOAD_KEY = "upload key"
    OPEN_SSH = "open SSH"
    CREATE_VOLUME = "create volume"
    CREATE_SERVER = "create server"
    ALLOCATE_ADDRESS = "allocate address"
    ATTACH_ADDRESS = "attach address"
    EXTEND_LEASE = "extend lease"
    DELETE_SERVER = "delete server"
    DELETE_VOLUME = "delete volume"
    RELEASE_ADDRESS = "release address"
    DELETE_KEY = "delete key"
    CLOSE_SSH = "close SSH"
    DELETE_LEASE = "delete lease"


@dataclass(frozen=True)
class Entry:
    """A line of the ledger. data holds ids, names and times; never a credential."""

    at: str
    event: Event
    name: str
    tag: str
    site: str
    operation: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True)
class Machine:
    """A machine that answered: its server's name, and how it is logged in to."""

    server: str
    login: Login


@dataclass(frozen=True)
class ActiveLease:
    """What the ledger says of one lease: acts are the outcomes of acts (the last one of each), wanted their intents.

    machines: those that answered and whose server was not deleted since, in the order of their names.
    """

    name: str
    tag: str
    site: str
    since: str
    wanted: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed_hosts: tuple[str, ...] = ()
    machines: tuple[Machine, ...] = ()


class Journal:
    """The ledger in a folder. ``now`` is the clock that entries are dated by."""

    def __init__(self, folder: Path | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder = folder or default_folder()
        self._now = now
        self._file = self.folder / "ledger.jsonl"
        self.known_hosts = self.folder / "known_hosts"

    @contextmanager
    def alone(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One program at a time works on the lease of that name; ``waiting`` is told when another one does."""
        with self._locked(self.folder / "locks" / name, waiting):
            yield

    def open(self, name: str, site: str) -> ActiveLease:
        """A new holding, with a mark that nothing else carries."""
        tag = f"llm-testbed-{secrets.token_hex(6)}"
        self.write("opened", ActiveLease(name, tag, site, ""))
        active_lease = self.active_lease(name)
        assert active_lease
        return active_lease

    def write(self, event: Event, active_lease: ActiveLease, operation: Operation | None = None, **data: Any) -> None:
        entry = Entry(
            self._now().isoformat(timespec="seconds"),
            event,
            active_lease.name,
            active_lease.tag,
            active_lease.site,
            operation or "",
            data,
        )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked(self.folder / "ledger.lock"), self._file.open("ab+") as file:
            torn = file.tell() and not self._file.read_bytes().endswith(b"\n")
            file.write((b"\n" if torn else b"") + json.dumps(_as_written(entry), default=str).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def reached(self, active_lease: ActiveLease, machine: Machine) -> None:
        """Keep how a machine is logged in to."""
        self.write("reached", active_lease, server=machine.server, login=asdict(machine.login))

    def entries(self) -> list[Entry]:
        """All lines; one that a killed program left half written is passed over."""
        lines = self._file.read_text().split("\n") if self._file.exists() else []
        return [entry for number, line in enumerate(lines, start=1) if line and (entry := self._entry(line, number))]

    def active_leases(self) -> dict[str, ActiveLease]:
        """What is held, by name."""
        held: dict[str, ActiveLease] = {}
        for entry in self.entries():
            if entry.event == "opened":
                held[entry.name] = ActiveLease(entry.name, entry.tag, entry.site, entry.at)
            elif entry.event == "closed":
                held.pop(entry.name, None)
            elif entry.name in held:
                held[entry.name] = _with(held[entry.name], entry)
        return held

    def tags(self) -> set[str]:
        """Every mark that was ever given here."""
        return {entry.tag for entry in self.entries() if entry.event == "opened"}

    def begun(self, active_lease: ActiveLease, operation: Operation) -> dict[str, Any]:
        """The intent of an act whose outcome was never written; empty where there is none."""
        told = [entry for entry in self.entries() if (entry.tag, entry.operation) == (active_lease.tag, operation)]
        return told[-1].data if told and told[-1].event == "intent" else {}

    def hosts(self, lease_id: str) -> tuple[str, ...]:
        """The ids of a lease's hosts, as the site last told of any."""
        leases = (one.data for one in self.entries() if (one.event, one.operation) == ("done", Operation.CREATE_LEASE))
        told = [data["hosts"] for data in leases if data.get("id") == lease_id and data["hosts"]]
        return tuple(told[-1]) if told else ()

    def active_lease(self, name: str) -> ActiveLease | None:
        return self.active_leases().get(name)

    def _entry(self, line: str, number: int) -> Entry | None:
        try:
            read = json.loads(line)
        except ValueError:
            return None
        version = read.get("version") if isinstance(read, dict) else None
        if version != VERSION:
            raise BadJournal(
                f"{self._file}: line {number}: version {version!r}; allowed: {VERSION}; "
                "move the file away, or use the program that wrote it"
            )
        return Entry(**{FIELDS.get(key, key): value for key, value in read.items()})

    @contextmanager
    def _locked(self, file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _as_written(entry: Entry) -> dict[str, Any]:
    on_disk = {name: key for key, name in FIELDS.items()}
    return {on_disk.get(name, name): value for name, value in asdict(entry).items()}


def default_folder() -> Path:
    if told := os.environ.get("TESTBED_LEDGER"):
        return Path(told)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llm-testbed"


def _with(active_lease: ActiveLease, entry: Entry) -> ActiveLease:
    """The holding after an intent or an outcome. A lease that we mean to delete is not missed."""
    if entry.event == "reached":
        return replace(active_lease, machines=_with_machine(active_lease.machines, entry.data))
    if entry.operation == Operation.DELETE_SERVER and entry.event == "done":
        left = tuple(one for one in active_lease.machines if one.login.alias != entry.data.get("id"))
        return replace(active_lease, machines=left)
    if entry.operation == Operation.DELETE_LEASE:
        operations = {
            operation: data
            for operation, data in active_lease.operations.items()
            if operation != Operation.CREATE_LEASE
        }
        return replace(active_lease, operations=operations)
    if entry.event == "intent":
        return replace(active_lease, wanted={**active_lease.wanted, entry.operation: entry.data})
    if entry.event == "done":
        return replace(active_lease, operations={**active_lease.operations, entry.operation: entry.data})
    hosts = tuple(entry.data.get("hosts", ()))
    return replace(active_lease, failed_hosts=tuple(dict.fromkeys((*active_lease.failed_hosts, *hosts))))


def _with_machine(machines: tuple[Machine, ...], data: dict[str, Any]) -> tuple[Machine, ...]:
    told = data["login"]
    paths = {name: Path(told[name]) for name in ("key", "known_hosts")}
    fresh = Machine(data["server"], Login(**{**told, **paths}))
    others = [one for one in machines if one.server != fresh.server]
    return tuple(sorted([*others, fresh], key=lambda one: one.server))
