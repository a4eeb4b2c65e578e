"""A lease request, and the task of carrying it out at one site."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from provision.availability.matching import gpus_in_words
from provision.availability.times import length_in_words, local_zone, time_in_words
from provision.choices import DISK_IMAGE, VGPU_DISK_IMAGE
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.models import Address, Host, Lease, Requirements, Server, TimeSlot
from provision.sites.base import LeasingSite
from provision.ssh.login import KeyPair

ENDED_STATUSES = ("TERMINATED", "ERROR")
"""Statuses of a lease that has ended."""
T = TypeVar("T")


@dataclass(frozen=True)
class EndWhenIdle:
    """When a lease ends itself: after its node was idle for the time ``after``, if the results are saved.

    results_to: rsync target to which the node copies the results, with the SSH key ``key``; '' if this computer
    downloads the results instead.
    """

    after: timedelta
    results_to: str = ""
    key: Path | None = None

    @property
    def in_words(self) -> str:
        """The idle time and the place of the results, in words."""
        where = f"; its results are copied to {self.results_to}" if self.results_to else ", if all results are fetched"
        return f"ends after {length_in_words(self.after)} without work{where}"


@dataclass(frozen=True)
class LeaseRequest:
    """A request for a lease: names, requirements, SSH key and disk image.

    starts_now: start at the moment of the reservation. end_when_idle: None if the lease does not end itself.
    """

    name: str
    server_name: str
    requirements: Requirements
    key: KeyPair
    starts_now: bool = False
    image: str = DISK_IMAGE
    end_when_idle: EndWhenIdle | None = None

    @property
    def server_names(self) -> list[str]:
        """The names of the servers, numbered if there are several."""
        count = self.requirements.host_count
        return [self.server_name] if count == 1 else [f"{self.server_name}-{n}" for n in range(1, count + 1)]


@dataclass(frozen=True)
class LeaseTask:
    """A lease request that is being carried out. initial_record: the lease's record in the journal at the beginning."""

    site: LeasingSite
    reconciler: Reconciler
    lease_request: LeaseRequest
    initial_record: ActiveLease

    @property
    def active_lease(self) -> ActiveLease:
        """The lease's current record in the journal."""
        return self.reconciler.journal.active_lease(self.lease_request.name) or self.initial_record

    def find_or_create(
        self,
        operation: Operation,
        find: Callable[[], T | None],
        create: Callable[[], T],
        outcome: Callable[[T], dict[str, Any]] = lambda resource: {"id": getattr(resource, "id", "")},
        **intent: Any,
    ) -> T:
        """Find or create a resource of this lease; see Reconciler.find_or_create."""
        return self.reconciler.find_or_create(self.initial_record, operation, find, create, outcome, **intent)

    def find_lease(self) -> Lease | None:
        """Return the lease at the site; None if there is none."""
        return find_lease(self.site, self.active_lease)

    def find_server(self, name: str) -> Server | None:
        """Return the lease's server with this name; None if there is none."""
        servers = (server for server in self.site.servers() if server.tag == self.initial_record.tag)
        return next((server for server in servers if server.name == name), None)


def default_image(node_type: str | None) -> str:
    """Return the disk image for nodes of that type or flavor."""
    return VGPU_DISK_IMAGE if "vgpu" in (node_type or "") else DISK_IMAGE


def find_lease(site: LeasingSite, active_lease: ActiveLease) -> Lease | None:
    """Return the lease at the site with the record's tag; None if there is none.

    If several have the tag, returns the oldest lease that has not ended, else the oldest lease.
    """
    found = [lease for lease in site.leases() if lease.tag == active_lease.tag]
    return min(found, key=lambda lease: (lease.status in ENDED_STATUSES, lease.created, lease.id), default=None)


def first_resource_with_tag(resources: list[T], tag: str) -> T | None:
    """Return the first resource with this tag; None if there is none."""
    return next((resource for resource in resources if getattr(resource, "tag", "") == tag), None)


def same_hardware(host: Host, other: Host) -> bool:
    """Return whether two hosts differ only in id and name."""
    return replace(host, id="", name="") == replace(other, id="", name="")


def lease_data(lease: Lease) -> dict[str, Any]:
    """Return id, start, end and hosts of a lease, as the journal stores them."""
    return {
        "id": lease.id,
        "start": format_journal_time(lease.start),
        "end": format_journal_time(lease.end),
        "hosts": list(lease.hosts),
    }


def slot_data(slot: TimeSlot) -> dict[str, Any]:
    """Return start, end, hosts and cost of a time slot, as the journal stores them."""
    names = [host.name for host in slot.hosts]
    return {
        "start": format_journal_time(slot.start),
        "end": format_journal_time(slot.end),
        "hosts": names,
        "cost_su": slot.cost_su,
    }


def address_data(address: Address) -> dict[str, Any]:
    """Return id and address of a floating IP, as the journal stores them."""
    return {"id": address.id, "ip": address.ip}


def format_journal_time(moment: datetime) -> str:
    """Return a time in the journal's format."""
    return moment.isoformat(timespec="minutes")


def slot_in_words(slot: TimeSlot) -> str:
    """Return hosts, times and cost of a time slot in one line."""
    zone = local_zone()
    names = ", ".join(host.name for host in slot.hosts)
    cost = "" if slot.cost_su is None else f", {slot.cost_su:g} SU"
    first = slot.hosts[0]
    times = f"{time_in_words(slot.start, zone)} to {time_in_words(slot.end, zone)}"
    return f"{names} ({first.node_type} at {first.site}), {times}{cost}"


def requirements_in_words(requirements: Requirements, starts_now: bool) -> str:
    """Return the requested hardware and time of a lease in one line."""
    count, named = requirements.host_count, requirements.node or requirements.node_type
    nodes = " ".join(filter(None, (str(count), "node" if count == 1 else "nodes", named)))
    if starts_now:
        start = "now"
    else:
        start = time_in_words(requirements.start, local_zone()) if requirements.start else "as early as possible"
    return f"{nodes} with {gpus_in_words(requirements)}, for {length_in_words(requirements.length)}, start: {start}"


def end_when_idle_data(end_when_idle: EndWhenIdle) -> dict[str, Any]:
    """Return when a lease ends itself, and where its results are copied, as the journal stores them."""
    key = str(end_when_idle.key) if end_when_idle.key else ""
    return {"after_s": end_when_idle.after.total_seconds(), "results_to": end_when_idle.results_to, "key": key}


def end_when_idle_of(active_lease: ActiveLease) -> EndWhenIdle | None:
    """Return when the lease ends itself; None if it does not, or if the setup of its node was interrupted."""
    return _end_when_idle_in(active_lease.outcomes)


def requested_end_when_idle(active_lease: ActiveLease) -> EndWhenIdle | None:
    """Return when the lease should end itself according to the user's request; None if the user did not request this.

    The setup of the node may have been interrupted since the request.
    """
    return _end_when_idle_in(active_lease.intents) or end_when_idle_of(active_lease)


def _end_when_idle_in(records: Mapping[str, Mapping[str, Any]]) -> EndWhenIdle | None:
    data = records.get(Operation.CREATE_CREDENTIAL, {})
    if "after_s" not in data:
        return None
    key = Path(data["key"]) if data["key"] else None
    return EndWhenIdle(timedelta(seconds=data["after_s"]), data["results_to"], key)


def deletion_reason(active_lease: ActiveLease) -> str:
    """Return in words why the site may no longer list a lease that ends itself; '' for other leases.

    The site does not report whether the node or a person has deleted the lease.
    """
    end_when_idle = end_when_idle_of(active_lease)
    if end_when_idle is None or Operation.CREATE_LEASE not in active_lease.outcomes:
        return ""
    results = (
        f"its results are at {end_when_idle.results_to}" if end_when_idle.results_to else "all results were fetched"
    )
    after = length_in_words(end_when_idle.after)
    return f"was deleted: either it ended itself after {after} without work ({results}), or somebody deleted it"
