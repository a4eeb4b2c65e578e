"""The site ``demo``: a fixed calendar and simulated leases, to try the commands without an account.

Nothing is reserved, booted or charged. A file stores the site's resources. The site's clock jumps ahead instead of
waiting; the file also stores how far the clock is ahead. When the last lease is released, the site is reset.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from provision.clock import Clock
from provision.errors import BadJournal, ExtensionRejected
from provision.files import read_bytes
from provision.folders import demo_folder
from provision.models import (
    Address,
    Booking,
    Credential,
    Host,
    Identity,
    Lease,
    Server,
    TaggedResource,
    TimeSlot,
)
from provision.ssh.login import Login

REGION = "DEMO@nowhere"
USER = Identity("you", "demo-user", "DEMO", "demo-project", "https://demo.invalid/v3", REGION)
LONGEST_WAIT_S = 0.2
"""The longest time for which the program really waits when it waits by the simulated clock, seconds."""
SPEED = 60
"""Seconds by which the simulated clock advances for each second of a requested wait."""
BOOT_TIME = timedelta(minutes=9)
HOUR = timedelta(hours=1)


def _make_host(number: int, model: str, memory_gib: float, interconnect: str, su_per_hour: float) -> Host:
    """Return a fictitious node with four GPUs."""
    short = model.rpartition(" ")[2].lower()
    return Host(
        id=str(number),
        name=f"demo-{short}-{number}",
        site=REGION,
        node_type=f"gpu_{short}_{interconnect.lower()}",
        gpu_model=model,
        gpus=4,
        gpu_memory_gib=memory_gib,
        interconnect=interconnect,
        su_per_hour=su_per_hour,
    )


CALENDAR: dict[Host, tuple[tuple[int, int], ...]] = {
    _make_host(1, "NVIDIA A100", 80, "PCIe", 16): ((-5, 2), (14, 38)),
    _make_host(2, "NVIDIA A100", 80, "PCIe", 16): ((-2, 9), (26, 50)),
    _make_host(3, "NVIDIA A100", 80, "NVLink", 16): ((-9, 20),),
    _make_host(4, "NVIDIA V100", 32, "NVLink", 8): ((6, 18),),
    _make_host(5, "NVIDIA V100", 32, "PCIe", 8): ((-3, 4), (30, 40)),
}
"""The hosts, and the periods in which each host is booked: begin and end in hours after the site's first use."""


@dataclass
class _State:
    """The resources at the site. ahead: how far the site's clock is ahead of the real time.

    servers: the time of creation and the server, by the server's id. made: number of resources created so far, for ids.
    """

    started_at: datetime
    ahead: timedelta = timedelta()
    leases: list[Lease] = field(default_factory=list)
    servers: dict[str, tuple[datetime, Server]] = field(default_factory=dict)
    keys: list[TaggedResource] = field(default_factory=list)
    addresses: list[Address] = field(default_factory=list)
    made: int = 0


_FORMAT = TypeAdapter(_State)


class DemoClock(Clock):
    """The clock of the simulated site, which moves ahead instead of waiting."""

    def __init__(self, folder: Path) -> None:
        self._store = _Store(folder)

    def now(self) -> datetime:
        return super().now() + self._store.read().ahead

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self._store.read().ahead.total_seconds()

    def sleep(self, seconds: float) -> None:
        waited = min(seconds, LONGEST_WAIT_S)
        super().sleep(waited)
        with self._store.edit() as state:
            state.ahead += timedelta(seconds=seconds * SPEED - waited)


RENAMED_KEY = b'"resources":', b'"reservation_ids":'
"""The key of a lease's reservation ids in files of earlier versions, and the same key today."""


class _Store:
    """The file of the simulated site's state."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "site.json"

    def read(self) -> _State:
        if self._file.exists():
            try:
                return _FORMAT.validate_json(read_bytes(self._file).replace(*RENAMED_KEY))
            except (OSError, ValidationError):
                raise BadJournal(f"{self._file}: damaged; remove the file to start the demonstration again") from None
        return _State(Clock().now().replace(minute=0, second=0, microsecond=0))

    @contextmanager
    def edit(self) -> Iterator[_State]:
        """Yield the state; write it when the body ends."""
        state = self.read()
        yield state
        self._write(state)

    def _write(self, state: _State) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if state.leases or state.servers or state.keys or state.addresses:
            self._file.write_bytes(_FORMAT.dump_json(state))
        else:
            self._file.unlink(missing_ok=True)


class Demo:
    """A bare-metal site that exists only in a file."""

    name = REGION
    boot_limit_s = 40.0 * 60
    listing_delay_s = 0.0

    def __init__(self, folder: Path) -> None:
        self._store, self._clock = _Store(folder), DemoClock(folder)

    def user(self) -> str:
        return USER.user

    def user_id(self) -> str:
        return USER.user_id

    def identity(self) -> Identity:
        return USER

    def credential(self) -> Credential:
        return Credential()

    def clock_skew(self) -> timedelta:
        return timedelta()

    def check_quota(self) -> str:
        return f"{len(self.servers())} of 10 servers are used"

    def service_units_in_words(self) -> str:
        return "20000 of 20000 left, all of them simulated"

    def addresses_left(self) -> int | None:
        return 10 - len(self.addresses())

    def public_keys(self) -> list[tuple[str, str]]:
        return []

    def hosts(self) -> list[Host]:
        return list(CALENDAR)

    def bookings(self) -> list[Booking]:
        state = self._store.read()
        others = [
            Booking(host.id, state.started_at + begin * HOUR, state.started_at + end * HOUR)
            for host, hours in CALENDAR.items()
            for begin, end in hours
        ]
        return others + [Booking(host, lease.start, lease.end) for lease in state.leases for host in lease.hosts]

    def leases(self) -> list[Lease]:
        return [self._with_status(lease) for lease in self._store.read().leases]

    def create_lease(self, name: str, tag: str, slot: TimeSlot) -> Lease:
        hosts = tuple(host.id for host in slot.hosts)
        with self._store.edit() as state:
            id = self._new_id(state, "lease")
            reservation_ids = tuple(f"{id}-{host}" for host in hosts)
            lease = Lease(
                id, name, "PENDING", slot.start, slot.end, reservation_ids, hosts, tag, created=id, owner=USER.user_id
            )
            state.leases.append(lease)
        return self._with_status(lease)

    def extend_lease(self, lease: Lease, slot: TimeSlot) -> Lease:
        for booking in self.bookings():
            if booking.host_id in lease.hosts and lease.end <= booking.start < slot.end:
                raise ExtensionRejected(f"lease {lease.name}: its node is booked from {booking.start:%H:%M} UTC")
        with self._store.edit() as state:
            state.leases = [
                replace(stored, end=slot.end) if stored.id == lease.id else stored for stored in state.leases
            ]
        return replace(lease, end=slot.end)

    def delete_lease(self, lease: Lease) -> None:
        with self._store.edit() as state:
            state.leases = [stored for stored in state.leases if stored.id != lease.id]

    def image_id(self, name: str) -> str:
        return "demo-image"

    def check_boot_requirements(self) -> str:
        return "no network is used"

    def servers(self) -> list[Server]:
        now, servers = self._clock.now(), self._store.read().servers.values()
        return [
            replace(server, status="ACTIVE" if now >= created_at + BOOT_TIME else "BUILD")
            for created_at, server in servers
        ]

    def create_server(self, name: str, tag: str, reservation_id: str, source: str) -> Server:
        with self._store.edit() as state:
            server = Server(self._new_id(state, "server"), name, "BUILD", tag, image_id=source, owner=USER.user_id)
            state.servers[server.id] = (self._clock.now(), server)
        return server

    def delete_server(self, server: Server) -> None:
        with self._store.edit() as state:
            state.servers.pop(server.id, None)

    def keys(self) -> list[TaggedResource]:
        return self._store.read().keys

    def upload_key(self, tag: str, public_key: str) -> TaggedResource:
        with self._store.edit() as state:
            state.keys.append(TaggedResource(tag, "key", tag, USER.user_id))
        return state.keys[-1]

    def delete_key(self, key: TaggedResource) -> None:
        with self._store.edit() as state:
            state.keys = [stored for stored in state.keys if stored.id != key.id]

    def addresses(self) -> list[Address]:
        return self._store.read().addresses

    def allocate_address(self, tag: str) -> Address:
        with self._store.edit() as state:
            taken = {address.ip for address in state.addresses}
            ip = next(ip for number in count(1) if (ip := f"192.0.2.{number}") not in taken)
            state.addresses.append(Address(self._new_id(state, "address"), ip, tag=tag, owner=USER.user_id))
        return state.addresses[-1]

    def attach_address(self, address: Address, server: Server) -> Address:
        attached = replace(address, server=server.id)
        with self._store.edit() as state:
            state.addresses = [attached if stored.id == address.id else stored for stored in state.addresses]
        return attached

    def release_address(self, address: Address) -> None:
        with self._store.edit() as state:
            state.addresses = [stored for stored in state.addresses if stored.id != address.id]

    def try_login(self, login: Login) -> None:
        """Do nothing, as if the machine had answered."""

    def _with_status(self, lease: Lease) -> Lease:
        now = self._clock.now()
        status = "PENDING" if now < lease.start else "ACTIVE" if now < lease.end else "TERMINATED"
        return replace(lease, status=status)

    def _new_id(self, state: _State, kind: str) -> str:
        state.made += 1
        return f"demo-{kind}-{state.made:03}"


def connect() -> Demo:
    """Return the simulated site."""
    return Demo(demo_folder())


def demo_key() -> Path:
    """Return the file of the simulated site's private SSH key; create the key if it is missing."""
    file = demo_folder() / "id_ed25519"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", str(file)], check=True)
    return file
