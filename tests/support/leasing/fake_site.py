"""A fake site in memory, and a fake clock that advances only when the code waits."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from provision.clock import Clock
from provision.models import Address, Booking, Credential, Host, Identity, Lease, Server, TaggedResource

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
CREDENTIAL = Credential()
IDENTITY = Identity("cc", "1", "CHI-000001", "p1", "https://chi.uc.chameleoncloud.org:5000/v3", "CHI@UC", "uc")


class FakeClock(Clock):
    """Fake clock that begins at NOW."""

    def __init__(self):
        self.at = NOW

    def now(self):
        return self.at

    def monotonic_s(self):
        return (self.at - NOW).total_seconds()

    def sleep(self, seconds):
        self.at += timedelta(seconds=seconds)


def hosts_of(number: int, **overrides: object) -> list[Host]:
    kind: dict[str, Any] = {"site": "CHI@UC", "node_type": "gpu", "gpus": 4, **overrides}
    return [Host(str(n), f"node-{n}", **kind) for n in range(1, number + 1)]


@dataclass
class FakeSite:
    """A bare-metal site. A server on a host in ``broken`` goes to ERROR, one on a host in ``slow`` stays in BUILD.

    ``before`` is called with the name of each operation before it is carried out; it may raise or change the site.
    """

    machines: list[Host] = field(default_factory=lambda: hosts_of(2))
    broken: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    lease_status: str = "ACTIVE"
    fault: str = ""
    before: Callable[[str], object] = lambda operation: None
    name: str = "CHI@UC"
    boot_limit_s: float = 40 * 60
    listing_delay_s: float = 0.0
    account: Identity = IDENTITY
    limits: Credential = CREDENTIAL

    def __post_init__(self):
        self.held: list[Lease] = []
        self.booted: list[Server] = []
        self.uploaded: list[TaggedResource] = []
        self.taken: list[Address] = []
        self.attempts: list[tuple[str, str]] = []
        self._numbers = count(1)

    def user(self):
        return self.account.user

    def user_id(self):
        return self.account.user_id

    def identity(self):
        return self.account

    def credential(self):
        return self.limits

    def clock_skew(self):
        return timedelta(0)

    def check_quota(self):
        return f"{len(self.booted)} of 10 servers are used"

    def service_units_in_words(self):
        return "not reported by the site's services"

    def addresses_left(self):
        return None

    def public_keys(self):
        return []

    def hosts(self):
        return self.machines

    def bookings(self):
        return [Booking(host, lease.start, lease.end) for lease in self.held for host in lease.hosts]

    def image_id(self, name):
        return "image"

    def check_boot_requirements(self):
        return "network"

    def leases(self):
        return list(self.held)

    def create_lease(self, name, tag, slot):
        self.before("create lease")
        ids = tuple(host.id for host in slot.hosts)
        number = next(self._numbers)
        resources = tuple(f"reservation-{number}-{id}" for id in ids)
        more = {"hosts": ids, "tag": tag, "created": f"{number:03}", "fault": self.fault}
        self.held.append(Lease(f"lease-{number}", name, self.lease_status, slot.start, slot.end, resources, **more))
        return self.held[-1]

    def extend_lease(self, lease, slot):
        self.held = [replace(one, end=slot.end) if one.id == lease.id else one for one in self.held]
        return next(one for one in self.held if one.id == lease.id)

    def delete_lease(self, lease):
        self.before("delete lease")
        self.held = [one for one in self.held if one.id != lease.id]

    def servers(self):
        return list(self.booted)

    def create_server(self, name, tag, reservation_id, source):
        self.before("create server")
        host = reservation_id.rpartition("-")[2]
        self.attempts.append((name, host))
        status = "ERROR" if host in self.broken else "BUILD" if host in self.slow else "ACTIVE"
        fault = f"no power on {host}" if status == "ERROR" else ""
        self.booted.append(Server(f"server-{next(self._numbers)}", name, status, tag, fault))
        return self.booted[-1]

    def delete_server(self, server):
        self.before("delete server")
        self.booted = [one for one in self.booted if one.id != server.id]

    def keys(self):
        return list(self.uploaded)

    def upload_key(self, tag, public_key):
        self.uploaded.append(TaggedResource(tag, "key", tag))
        return self.uploaded[-1]

    def delete_key(self, key):
        self.before("delete key")
        self.uploaded.remove(key)

    def addresses(self):
        return list(self.taken)

    def allocate_address(self, tag):
        number = next(self._numbers)
        self.taken.append(Address(f"address-{number}", f"192.0.2.{number}", tag=tag))
        return self.taken[-1]

    def attach_address(self, address, server):
        self.taken.remove(address)
        self.taken.append(replace(address, server=server.id))
        return self.taken[-1]

    def release_address(self, address):
        self.before("release address")
        self.taken.remove(address)

    def remaining_resources(self):
        return [*self.held, *self.booted, *self.uploaded, *self.taken]
