"""What a lease costs: until now, and what goes on costing when a command ends."""

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
from provision.sites.base import Testbed

HOUR = timedelta(hours=1)


@contextmanager
def costs_reported(reconciler: Reconciler, name: str) -> Iterator[None]:
    """Report what goes on costing under that name when the body ends, however it ends."""
    try:
        yield
    finally:
        active_lease = reconciler.journal.active_lease(name)
        if active_lease and (line := costing(reconciler, active_lease)):
            reconciler.report(line)


def costing(reconciler: Reconciler, active_lease: ActiveLease) -> str:
    """Return what goes on costing, how much, and the command that ends it; '' if nothing does.

    It is read from the journal, as the site may be what fails.
    """
    entries = [entry for entry in reconciler.journal.entries() if entry.tag == active_lease.tag]
    made, asked = list(_made(entries).values()), _asked(entries)
    if not made and not _unanswered(entries):
        return ""
    end = max(map(_end, made or [asked]))
    until = time_in_words(end, local_zone())
    known = f"costs {_price(asked)} until {until}" if made else f"may have been made, and costs {_price(asked)} then"
    if end <= reconciler.clock.now():
        known = f"was to end {until}, and costs {_price(asked)} if it was extended elsewhere"
    return f"lease {active_lease.name} at {active_lease.site} {known}; to end it: testbed release {active_lease.name}"


def _made(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Return what the journal has last of each lease that was made and not deleted, by its id."""
    made: dict[str, dict[str, Any]] = {}
    deleted: set[str] = set()
    for entry in entries:
        id = entry.data.get("id", "")
        if entry.event == "done" and entry.operation in (Operation.CREATE_LEASE, Operation.EXTEND_LEASE):
            made[id] = entry.data
        elif entry.operation == Operation.DELETE_LEASE:
            (deleted.add if entry.event == "done" else deleted.discard)(id)
    return {id: data for id, data in made.items() if id not in deleted}


def _asked(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the time slot and price of the last lease that was asked for, or {}."""
    intents = [one.data for one in entries if (one.event, one.operation) == ("intent", Operation.CREATE_LEASE)]
    return intents[-1] if intents else {}


def _unanswered(entries: Sequence[Entry]) -> bool:
    """Return whether the outcome of the last request for a lease is unknown."""
    events = [entry.event for entry in entries if entry.operation == Operation.CREATE_LEASE]
    return bool(events) and events[-1] == "intent"


def _end(data: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(data["end"])


def leased_hosts(reconciler: Reconciler, site: Testbed, lease: Lease) -> tuple[Host | None, ...]:
    """Return the hosts of a lease, None for one that its site does not list. A site forgets those of past leases."""
    known = {host.id: host for host in reconciler.query(site.hosts)}
    return tuple(map(known.get, lease.hosts or reconciler.journal.hosts(lease.id)))


def cost_su(hosts: Sequence[Host | None], length: timedelta) -> float | None:
    """Return the service units of hosts for that time; None if hosts or prices are unknown."""
    prices = [host.su_per_hour if host else None for host in hosts]
    known = [price for price in prices if price is not None]
    return sum(known) * (length / HOUR) if prices and len(known) == len(prices) else None


def used_time(reconciler: Reconciler, lease: Lease) -> timedelta:
    """Return the time of a lease that has passed."""
    return max(min(reconciler.clock.now(), lease.end) - lease.start, timedelta())


def used_in_words(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease) -> str:
    """Return what a lease has cost, unknown if the site does not tell: nothing that is to be released waits for it."""
    used = None
    with suppress(SiteError):
        lease = find_lease(site, active_lease)
        used = cost_su(leased_hosts(reconciler, site, lease), used_time(reconciler, lease)) if lease else None
    return "unknown" if used is None else f"{used:.1f} service units"


def _price(slot: dict[str, Any]) -> str:
    if slot.get("cost_su") is None:
        return "service units"
    hours = (_end(slot) - datetime.fromisoformat(slot["start"])) / HOUR
    return f"{slot['cost_su'] / hours:g} service units an hour"
