"""One order at one site while it is carried out, and how what belongs to it is found again there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from provision.availability.times import local_zone, time_in_words
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.models import Address, Host, Lease, Requirements, Server, TimeSlot, Volume
from provision.sites.base import Testbed
from provision.ssh.login import KeyPair

OVER = ("TERMINATED", "ERROR")
DELETE_LIMIT_S = 10 * 60
T = TypeVar("T")


@dataclass(frozen=True)
class LeaseRequest:
    """What a person wants leased: under which names, of which hardware and time, with which SSH key.

    at_once: from the moment on at which it is asked for, whenever that is.
    """

    name: str
    server_name: str
    requirements: Requirements
    key: KeyPair
    at_once: bool = False

    @property
    def server_names(self) -> list[str]:
        count = self.requirements.count
        return [self.server_name] if count == 1 else [f"{self.server_name}-{n}" for n in range(1, count + 1)]


@dataclass(frozen=True)
class LeaseTask:
    """An order on its way: the site it goes to, and its page in the ledger as it was opened."""

    site: Testbed
    reconciler: Reconciler
    lease_request: LeaseRequest
    opened: ActiveLease

    @property
    def active_lease(self) -> ActiveLease:
        """The page as it is by now."""
        return self.reconciler.journal.active_lease(self.lease_request.name) or self.opened

    def ensure(
        self,
        operation: Operation,
        find: Callable[[], T | None],
        make: Callable[[], T],
        outcome: Callable[[T], dict[str, Any]] = lambda made: {"id": getattr(made, "id", "")},
        **intent: Any,
    ) -> T:
        return self.reconciler.ensure(self.opened, operation, find, make, outcome, **intent)

    def find_lease(self) -> Lease | None:
        return find_lease(self.site, self.active_lease)

    def find_server(self, name: str) -> Server | None:
        return next((one for one in self.site.servers() if one.tag == self.opened.tag and one.name == name), None)


def find_lease(site: Testbed, active_lease: ActiveLease) -> Lease | None:
    """The lease with the mark of a holding."""
    found = [lease for lease in site.leases() if lease.tag == active_lease.tag]
    return min(found, key=lambda lease: (lease.status in OVER, lease.created, lease.id), default=None)


def drop_servers(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease, name: str | None = None) -> None:
    """Delete the servers of a holding, or the one of that name, and see them gone."""

    def there() -> list[Server]:
        return [one for one in site.servers() if one.tag == active_lease.tag and name in (None, one.name)]

    reconciler.remove(active_lease, Operation.DELETE_SERVER, there, site.delete_server)
    reconciler.wait("servers being deleted", there, lambda left: not left, DELETE_LIMIT_S, every_s=2)


def drop_volumes(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease, name: str | None = None) -> None:
    """Delete what is left of the volumes of a holding's servers, or of the one of that name, and see them gone."""

    def there() -> list[Volume]:
        return [one for one in site.volumes() if one.tag == active_lease.tag and name in (None, one.name)]

    def staying() -> list[Volume]:
        return [one for one in there() if one.status != "deleting"]

    reconciler.remove(active_lease, Operation.DELETE_VOLUME, staying, site.delete_volume)
    reconciler.wait("volumes being deleted", there, lambda left: not left, DELETE_LIMIT_S, every_s=2)


def tagged(things: list[T], tag: str) -> T | None:
    return next((thing for thing in things if getattr(thing, "tag", "") == tag), None)


def same_hardware(one: Host, other: Host) -> bool:
    return replace(one, id="", name="") == replace(other, id="", name="")


def lease_data(lease: Lease) -> dict[str, Any]:
    return {"id": lease.id, "start": text(lease.start), "end": text(lease.end), "hosts": list(lease.hosts)}


def slot_data(slot: TimeSlot) -> dict[str, Any]:
    names = [host.name for host in slot.hosts]
    return {"start": text(slot.start), "end": text(slot.end), "hosts": names, "cost_su": slot.cost_su}


def address_data(address: Address) -> dict[str, Any]:
    return {"id": address.id, "ip": address.ip}


def text(moment: datetime) -> str:
    return moment.isoformat(timespec="minutes")


def in_words(slot: TimeSlot) -> str:
    """Hosts, times and cost of a slot, in a line."""
    zone = local_zone()
    names = ", ".join(host.name for host in slot.hosts)
    cost = "" if slot.cost_su is None else f", {slot.cost_su:g} SU"
    kind = slot.hosts[0]
    times = f"{time_in_words(slot.start, zone)} to {time_in_words(slot.end, zone)}"
    return f"{names} ({kind.node_type} at {kind.site}), {times}{cost}"
