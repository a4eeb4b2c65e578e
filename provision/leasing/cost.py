"""The cost of a lease so far, and the price of a lease that a command leaves active."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from provision.availability.times import local_zone, time_in_words
from provision.errors import SiteError
from provision.leasing.journal import ActiveLease, Entry, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import find_lease
from provision.models import Host, Lease
from provision.sites.base import LeasingSite

HOUR = timedelta(hours=1)


@contextmanager
def report_cost_on_exit(reconciler: Reconciler, name: str) -> Iterator[None]:
    """Report what the lease with that name costs from now on, when the body ends, even with an error."""
    try:
        yield
    finally:
        active_lease = reconciler.journal.active_lease(name)
        if active_lease and (line := running_cost(reconciler, active_lease)):
            reconciler.report(line)


def running_cost(reconciler: Reconciler, active_lease: ActiveLease) -> str:
    """Return as text what a lease costs until its end, and the command that releases it; '' if it costs nothing more.

    Reads only the journal, because the site may not answer.
    """
    entries = [entry for entry in reconciler.journal.entries() if entry.tag == active_lease.tag]
    leases, requested = list(_undeleted_leases(entries).values()), _last_requested_slot(entries)
    if not leases and not _has_unknown_outcome(entries):
        return ""
    end = max(map(_end_of_lease, leases or [requested]))
    until = time_in_words(end, local_zone())
    price = _price_in_words(requested)
    if end <= reconciler.clock.now():
        cost = f"should have ended {until}; if it was extended from another computer, it costs {price}"
    else:
        cost = f"costs {price} until {until}" if leases else f"may exist; if it does, it costs {price}"
    return f"lease {active_lease.name} at {active_lease.site} {cost}; to end it: testbed release {active_lease.name}"


def _undeleted_leases(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Return the last recorded data of each lease that was created and not deleted, by its id."""
    created: dict[str, dict[str, Any]] = {}
    deleted: set[str] = set()
    for entry in entries:
        id = entry.data.get("id", "")
        if entry.event == "done" and entry.operation in (Operation.CREATE_LEASE, Operation.EXTEND_LEASE):
            created[id] = entry.data
        elif entry.operation == Operation.DELETE_LEASE:
            (deleted.add if entry.event == "done" else deleted.discard)(id)
    return {id: data for id, data in created.items() if id not in deleted}


def _last_requested_slot(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the time slot and price of the last lease that was requested, or {}."""
    request = ("intent", Operation.CREATE_LEASE)
    slots = [entry.data for entry in entries if (entry.event, entry.operation) == request]
    return slots[-1] if slots else {}


def _has_unknown_outcome(entries: Sequence[Entry]) -> bool:
    """Return whether the outcome of the last request for a lease is unknown."""
    events = [entry.event for entry in entries if entry.operation == Operation.CREATE_LEASE]
    return bool(events) and events[-1] == "intent"


def _end_of_lease(data: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(data["end"])


def leased_hosts(reconciler: Reconciler, site: LeasingSite, lease: Lease) -> tuple[Host | None, ...]:
    """Return the hosts of a lease, with None for each host that the site does not list any more."""
    known = {host.id: host for host in reconciler.query(site.hosts)}
    return tuple(map(known.get, lease.hosts or reconciler.journal.lease_hosts(lease.id)))


def cost_su(hosts: Sequence[Host | None], length: timedelta) -> float | None:
    """Return the cost of all hosts together for ``length``, service units; None if a host or a price is unknown."""
    prices = [host.su_per_hour if host else None for host in hosts]
    known = [price for price in prices if price is not None]
    return sum(known) * (length / HOUR) if prices and len(known) == len(prices) else None


def elapsed_lease_time(reconciler: Reconciler, lease: Lease) -> timedelta:
    """Return how much of a lease's time has passed."""
    return max(min(reconciler.clock.now(), lease.end) - lease.start, timedelta())


def cost_in_words(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease) -> str:
    """Return the cost of a lease so far in words; 'unknown' if the site does not answer the first request.

    A release shows the cost, and must not wait for it.
    """
    used = None
    with suppress(SiteError):
        lease = find_lease(site, active_lease)
        used = cost_su(leased_hosts(reconciler, site, lease), elapsed_lease_time(reconciler, lease)) if lease else None
    return "unknown" if used is None else f"{used:.1f} service units"


def _price_in_words(slot: dict[str, Any]) -> str:
    if slot.get("cost_su") is None:
        return "service units"
    hours = (_end_of_lease(slot) - datetime.fromisoformat(slot["start"])) / HOUR
    return f"{slot['cost_su'] / hours:g} service units an hour"
