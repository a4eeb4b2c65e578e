"""One order at one site while it is carried out, and how what belongs to it is found again there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from provision.availability.times import local_zone, time_in_words
from provision.leasing.ledger import Act, Holding
from provision.leasing.reconciler import Desk
from provision.models import Address, Host, Lease, Server, Slot, Volume, Wish
from provision.sites.base import Testbed
from provision.ssh.login import KeyPair

OVER = ("TERMINATED", "ERROR")
DELETE_LIMIT_S = 10 * 60
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What a person wants leased: under which names, of which hardware and time, with which SSH key.

    at_once: from the moment on at which it is asked for, whenever that is.
    """

    name: str
    server_name: str
    wish: Wish
    key: KeyPair
    at_once: bool = False

    @property
    def server_names(self) -> list[str]:
        count = self.wish.count
        return [self.server_name] if count == 1 else [f"{self.server_name}-{n}" for n in range(1, count + 1)]


@dataclass(frozen=True)
class Job:
    """An order on its way: the site it goes to, and its page in the ledger as it was opened."""

    site: Testbed
    desk: Desk
    order: Order
    opened: Holding

    @property
    def holding(self) -> Holding:
        """The page as it is by now."""
        return self.desk.ledger.holding(self.order.name) or self.opened

    def ensure(
        self,
        act: Act,
        find: Callable[[], T | None],
        make: Callable[[], T],
        outcome: Callable[[T], dict[str, Any]] = lambda made: {"id": getattr(made, "id", "")},
        **intent: Any,
    ) -> T:
        return self.desk.ensure(self.opened, act, find, make, outcome, **intent)

    def find_lease(self) -> Lease | None:
        return find_lease(self.site, self.holding)

    def find_server(self, name: str) -> Server | None:
        return next((one for one in self.site.servers() if one.mark == self.opened.mark and one.name == name), None)


def find_lease(site: Testbed, holding: Holding) -> Lease | None:
    """The lease with the mark of a holding."""
    found = [lease for lease in site.leases() if lease.mark == holding.mark]
    return min(found, key=lambda lease: (lease.status in OVER, lease.created, lease.id), default=None)


def drop_servers(site: Testbed, desk: Desk, holding: Holding, name: str | None = None) -> None:
    """Delete the servers of a holding, or the one of that name, and see them gone."""

    def there() -> list[Server]:
        return [one for one in site.servers() if one.mark == holding.mark and name in (None, one.name)]

    desk.remove(holding, Act.DELETE_SERVER, there, site.delete_server)
    desk.wait("servers being deleted", there, lambda left: not left, DELETE_LIMIT_S, every_s=2)


def drop_volumes(site: Testbed, desk: Desk, holding: Holding, name: str | None = None) -> None:
    """Delete what is left of the volumes of a holding's servers, or of the one of that name, and see them gone."""

    def there() -> list[Volume]:
        return [one for one in site.volumes() if one.mark == holding.mark and name in (None, one.name)]

    def staying() -> list[Volume]:
        return [one for one in there() if one.status != "deleting"]

    desk.remove(holding, Act.DELETE_VOLUME, staying, site.delete_volume)
    desk.wait("volumes being deleted", there, lambda left: not left, DELETE_LIMIT_S, every_s=2)


def marked(things: list[T], mark: str) -> T | None:
    return next((thing for thing in things if getattr(thing, "mark", "") == mark), None)


def same_hardware(one: Host, other: Host) -> bool:
    return replace(one, id="", name="") == replace(other, id="", name="")


def lease_data(lease: Lease) -> dict[str, Any]:
    return {"id": lease.id, "start": text(lease.start), "end": text(lease.end), "hosts": list(lease.hosts)}


def slot_data(slot: Slot) -> dict[str, Any]:
    names = [host.name for host in slot.hosts]
    return {"start": text(slot.start), "end": text(slot.end), "hosts": names, "cost_su": slot.cost_su}


def address_data(address: Address) -> dict[str, Any]:
    return {"id": address.id, "ip": address.ip}


def text(moment: datetime) -> str:
    return moment.isoformat(timespec="minutes")


def in_words(slot: Slot) -> str:
    """Hosts, times and cost of a slot, in a line."""
    zone = local_zone()
    names = ", ".join(host.name for host in slot.hosts)
    cost = "" if slot.cost_su is None else f", {slot.cost_su:g} SU"
    kind = slot.hosts[0]
    times = f"{time_in_words(slot.start, zone)} to {time_in_words(slot.end, zone)}"
    return f"{names} ({kind.node_type} at {kind.site}), {times}{cost}"
