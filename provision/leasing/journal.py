"""The write-ahead journal of leases. Each operation has two entries: its intent, and later its outcome.

A command that was killed at any point resumes from the journal. The journal is a file of JSON lines in the folder
``$TESTBED_LEDGER``, else in ``llm-testbed`` under ``$XDG_STATE_HOME`` or ``~/.local/state``.
"""

import fcntl
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from provision.errors import BadJournal
from provision.files import read_bytes, read_text
from provision.folders import state_folder
from provision.models import Identity
from provision.ssh.login import Login

VERSION = 1
FIELDS_BY_KEY = {"mark": "tag", "act": "operation"}
"""The fields of Entry that have another name in the file: the field's name by its key in the file."""
CHECKSUM_KEY = "sum"
"""The key of an entry's checksum, which lines of earlier versions do not have."""
Event = Literal["opened", "account", "intent", "done", "failed", "reached", "closed"]
"""What an entry records. opened, closed: the first and the last entry of a lease. account: the lease's account.

intent, done, failed: an operation is about to begin, succeeded or failed. reached: a machine has answered SSH.
"""


class Operation(StrEnum):
    """Every operation that changes something at a site."""

    CREATE_LEASE = "create lease"
    UPLOAD_KEY = "upload key"
    OPEN_SSH = "open SSH"
    CREATE_VOLUME = "create volume"
    CREATE_SERVER = "create server"
    ALLOCATE_ADDRESS = "allocate address"
    ATTACH_ADDRESS = "attach address"
    EXTEND_LEASE = "extend lease"
    CREATE_CREDENTIAL = "create credential"
    DELETE_SERVER = "delete server"
    DELETE_VOLUME = "delete volume"
    RELEASE_ADDRESS = "release address"
    DELETE_KEY = "delete key"
    CLOSE_SSH = "close SSH"
    DELETE_CREDENTIAL = "delete credential"
    DELETE_LEASE = "delete lease"


@dataclass(frozen=True)
class Entry:
    """A line of the journal. at: the time of the entry. data: ids, names and times, never a credential."""

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
    """A machine that has answered SSH: its server's name and its login."""

    server: str
    login: Login


@dataclass(frozen=True)
class ActiveLease:
    """The journal's record of a lease that was opened and not closed.

    since: time of the entry "opened". intents and outcomes: data of the last intent and of the last success of each
    operation. failed_hosts: ids of hosts that did not boot. machines: the machines that have answered SSH and that are
    not deleted, sorted by name. account: the account that made the lease; None in a journal of an earlier version.
    """

    name: str
    tag: str
    site: str
    since: str
    intents: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed_hosts: tuple[str, ...] = ()
    machines: tuple[Machine, ...] = ()
    account: Identity | None = None


class Journal:
    """The journal in a folder. now: returns the time of a new entry."""

    def __init__(self, folder: Path | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder = folder or state_folder()
        self._now = now
        self._file = self.folder / "ledger.jsonl"
        self.known_hosts = self.folder / "known_hosts"

    @contextmanager
    def lock_lease(self, name: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let only one program work on the lease of that name; call ``on_wait`` before waiting for another program."""
        if "/" in name or name in ("", ".", ".."):
            raise BadJournal(f"{self._file}: {name!r} is not a valid lease name; correct the line with this name")
        with self._file_lock(self.folder / "locks" / name, on_wait):
            yield

    def open_lease(self, name: str, site: str, account: Identity | None = None) -> ActiveLease:
        """Return the record of a new lease, with a unique tag. account: the account that creates the lease."""
        tag = f"llm-testbed-{secrets.token_hex(6)}"
        self.write("opened", ActiveLease(name, tag, site, ""), **_account_data(account))
        active_lease = self.active_lease(name)
        assert active_lease
        return active_lease

    def write(self, event: Event, active_lease: ActiveLease, operation: Operation | None = None, **data: Any) -> None:
        """Append an entry and flush it to disk."""
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
        with self._file_lock(self.folder / "ledger.lock"), self._file.open("ab+") as file:
            os.fchmod(file.fileno(), 0o600)
            incomplete = file.tell() and not read_bytes(self._file).endswith(b"\n")
            fields = _fields_on_disk(entry)
            line = json.dumps({CHECKSUM_KEY: _checksum(fields), **fields}, default=str)
            file.write((b"\n" if incomplete else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def record_machine(self, active_lease: ActiveLease, machine: Machine) -> None:
        """Record that a machine has answered SSH; record its login."""
        self.write("reached", active_lease, server=machine.server, login=asdict(machine.login))

    def record_account(self, active_lease: ActiveLease, account: Identity) -> None:
        """Record the account of a lease that an earlier version of the program recorded without an account."""
        self.write("account", active_lease, **_account_data(account))

    def entries(self) -> list[Entry]:
        """Return all entries; a line that a killed program left incomplete is skipped.

        Raises BadJournal for a line that has changed since it was written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise BadJournal(f"{self.folder}: not a folder; set TESTBED_LEDGER to the folder of the journal")
        try:
            lines = read_text(self._file, errors="replace").split("\n") if self._file.exists() else []
        except OSError as error:
            fix = "replace it by a file that you can read"
            raise BadJournal(f"{self._file}: cannot be read ({error.strerror}); {fix}") from None
        return [
            entry for number, line in enumerate(lines, start=1) if line and (entry := self._parse_line(line, number))
        ]

    def active_leases(self) -> dict[str, ActiveLease]:
        """Return the active leases by name."""
        active: dict[str, ActiveLease] = {}
        for entry in self.entries():
            if entry.event == "opened":
                opened = ActiveLease(entry.name, entry.tag, entry.site, entry.at)
                active[entry.name] = replace(opened, account=_account_in(entry.data))
            elif entry.event == "closed":
                active.pop(entry.name, None)
            elif entry.name in active:
                active[entry.name] = _apply_entry(active[entry.name], entry)
        return active

    def tags(self) -> set[str]:
        """Return every tag that this journal ever created."""
        return {entry.tag for entry in self.entries() if entry.event == "opened"}

    def pending_intent(self, active_lease: ActiveLease, operation: Operation) -> dict[str, Any]:
        """Return the data of the operation's last intent if its outcome was never written, else {}."""
        entries = [entry for entry in self.entries() if (entry.tag, entry.operation) == (active_lease.tag, operation)]
        return entries[-1].data if entries and entries[-1].event == "intent" else {}

    def lease_hosts(self, lease_id: str) -> tuple[str, ...]:
        """Return the ids of a lease's hosts as last recorded, or ()."""
        outcome = ("done", Operation.CREATE_LEASE)
        leases = (entry.data for entry in self.entries() if (entry.event, entry.operation) == outcome)
        hosts = [data["hosts"] for data in leases if data.get("id") == lease_id and data["hosts"]]
        return tuple(hosts[-1]) if hosts else ()

    def recorded_end(self, active_lease: ActiveLease) -> datetime | None:
        """Return the lease's end that was recorded last, at its creation or an extension; None without a record."""
        done = [entry.data for entry in self.entries() if (entry.tag, entry.event) == (active_lease.tag, "done")]
        ends = [data["end"] for data in done if "end" in data]
        return datetime.fromisoformat(ends[-1]) if ends else None

    def recorded_start(self, active_lease: ActiveLease) -> datetime | None:
        """Return the recorded start of the lease; None if the lease is not reserved yet."""
        start = active_lease.outcomes.get(Operation.CREATE_LEASE, {}).get("start")
        return datetime.fromisoformat(start) if start else None

    def active_lease(self, name: str) -> ActiveLease | None:
        """Return the active lease of that name."""
        return self.active_leases().get(name)

    def _parse_line(self, line: str, number: int) -> Entry | None:
        """Return the entry in a line; None for a line that a killed program left incomplete.

        Raises BadJournal for a damaged line, and for a line of another version of the format.
        """
        damaged = BadJournal(f"{self._file}: line {number} is damaged; restore the file, or correct the line")
        try:
            fields = json.loads(line)
        except RecursionError:
            raise damaged from None
        except json.JSONDecodeError as problem:
            if _is_incomplete(line, problem):
                return None
            raise damaged from None
        if isinstance(fields, dict) and fields.get(CHECKSUM_KEY) not in (None, _checksum(fields)):
            raise damaged
        version = fields.get("version") if isinstance(fields, dict) else None
        if version != VERSION:
            raise BadJournal(
                f"{self._file}: line {number}: version {version!r}; allowed: {VERSION}; "
                "move the file away, or use the version of the program that wrote it"
            )
        try:
            return Entry(**{FIELDS_BY_KEY.get(key, key): value for key, value in fields.items() if key != CHECKSUM_KEY})
        except TypeError:
            raise damaged from None

    @contextmanager
    def _file_lock(self, file: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        for folder in (self.folder, file.parent):  # `mode` does not apply to parents that mkdir creates
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _checksum(fields: dict[str, Any]) -> str:
    """Return the checksum of an entry's fields other than the checksum."""
    others = {name: value for name, value in fields.items() if name != CHECKSUM_KEY}
    return f"{zlib.crc32(json.dumps(others, default=str).encode()):08x}"


def _is_incomplete(line: str, problem: json.JSONDecodeError) -> bool:
    """Return whether an invalid line is the beginning of a valid line: a killed program leaves such a line."""
    in_word = any(word.startswith(line[problem.pos :]) for word in ("null", "true", "false"))
    return in_word or (problem.msg.startswith("Unterminated string") and not line.endswith("}"))


def _fields_on_disk(entry: Entry) -> dict[str, Any]:
    on_disk = {name: key for key, name in FIELDS_BY_KEY.items()}
    return {on_disk.get(name, name): value for name, value in asdict(entry).items()}


def _account_data(account: Identity | None) -> dict[str, Any]:
    return {"account": asdict(account)} if account else {}


def _account_in(data: dict[str, Any]) -> Identity | None:
    return Identity(**data["account"]) if "account" in data else None


def _apply_entry(active_lease: ActiveLease, entry: Entry) -> ActiveLease:
    """Return the record with an entry applied.

    The intent to delete a lease removes the record of its creation, so that a missing lease is no error afterwards.
    """
    if entry.event == "account":
        return replace(active_lease, account=_account_in(entry.data))
    if entry.event == "reached":
        return replace(active_lease, machines=_with_machine(active_lease.machines, entry.data))
    if entry.operation == Operation.DELETE_SERVER and entry.event == "done":
        deleted_id = entry.data.get("id")
        others = tuple(machine for machine in active_lease.machines if machine.login.alias != deleted_id)
        return replace(active_lease, machines=others)
    if entry.operation == Operation.DELETE_LEASE:
        outcomes = {
            operation: data for operation, data in active_lease.outcomes.items() if operation != Operation.CREATE_LEASE
        }
        return replace(active_lease, outcomes=outcomes)
    if entry.event == "intent":
        return replace(active_lease, intents={**active_lease.intents, entry.operation: entry.data})
    if entry.event == "done":
        return replace(active_lease, outcomes={**active_lease.outcomes, entry.operation: entry.data})
    hosts = tuple(entry.data.get("hosts", ()))
    return replace(active_lease, failed_hosts=tuple(dict.fromkeys((*active_lease.failed_hosts, *hosts))))


def _with_machine(machines: tuple[Machine, ...], data: dict[str, Any]) -> tuple[Machine, ...]:
    login = data["login"]
    paths = {name: Path(login[name]) for name in ("key", "known_hosts")}
    machine = Machine(data["server"], Login(**{**login, **paths}))
    others = [other for other in machines if other.server != machine.server]
    return tuple(sorted([*others, machine], key=lambda machine: machine.server))
