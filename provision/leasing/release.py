"""What is held: seen, made longer, given back. Nothing is touched that does not carry our mark."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from provision.availability.times import length_in_words, local_zone, time_in_words
from provision.errors import BadName, BadTime, ExtensionRefused, HeldOtherwise, NotOurs, NotReleased, ProvisionError
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import OVER, drop_servers, drop_volumes, find_lease, lease_data, text
from provision.models import Lease, Server, Thing, TimeSlot
from provision.sites.base import Testbed
from provision.ssh.login import forget

EXTENSION_WINDOW = timedelta(hours=48)
"""A lease can be made longer in its last 48 hours only, by at most LONGEST_EXTENSION (Chameleon's rules)."""
LONGEST_EXTENSION = timedelta(days=7)


@dataclass(frozen=True)
class State:
    """What is held under a name, as the site tells now: lease is None when it is gone. used_su: cost until now."""

    active_lease: ActiveLease
    lease: Lease | None
    servers: tuple[Server, ...]
    ips: tuple[str, ...]
    used_su: float | None


def held(reconciler: Reconciler, name: str) -> ActiveLease:
    """The holding of that name; BadName lists those there are."""
    active_leases = reconciler.journal.active_leases()
    if name not in active_leases:
        raise BadName(f"nothing is held as {name!r}; held: {', '.join(sorted(active_leases)) or 'nothing'}")
    return active_leases[name]


def state(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease) -> State:
    lease = reconciler.ask(lambda: find_lease(site, active_lease))
    servers = tuple(one for one in reconciler.ask(site.servers) if one.tag == active_lease.tag)
    ids = {server.id for server in servers}
    ips = tuple(one.ip for one in reconciler.ask(site.addresses) if one.server in ids)
    cost = _used_su(reconciler, site, lease) if lease else None
    return State(active_lease, lease, servers, ips, cost)


def extend(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease, by: timedelta) -> Lease:
    """Make a lease longer, within the site's rules; ExtensionRefused says which one or what the site says.

    An extension by as much that was begun and never finished is gone on with.
    """
    with reconciler.journal.alone(active_lease.name):
        lease, end = extension(site, reconciler, active_lease, by)
        slot = TimeSlot((), lease.start, end, None)

        def longer() -> Lease | None:
            now = find_lease(site, active_lease)
            return now if now and now.end >= end else None

        return reconciler.ensure(
            active_lease,
            Operation.EXTEND_LEASE,
            longer,
            lambda: site.extend_lease(lease, slot),
            lease_data,
            by=length_in_words(by),
            end=text(end),
        )


def extension(
    site: Testbed, reconciler: Reconciler, active_lease: ActiveLease, by: timedelta
) -> tuple[Lease, datetime]:
    """The lease as it is, and the end that it would be given.

    BadTime for a length that no site allows; ExtensionRefused where the lease is over, or not yet in its last 48 hours.
    """
    if not timedelta() < by <= LONGEST_EXTENSION:
        most = length_in_words(LONGEST_EXTENSION)
        raise BadTime(f"extension by {length_in_words(by)}: allowed: more than nothing, at most {most}")
    lease = reconciler.ask(lambda: find_lease(site, active_lease))
    if lease is None or lease.status in OVER:
        raise ExtensionRefused(f"lease {active_lease.name} is over; lease anew")
    begun = reconciler.journal.begun(active_lease, Operation.EXTEND_LEASE)
    if begun.get("by") == length_in_words(by) and (end := datetime.fromisoformat(begun["end"])) >= lease.end:
        reconciler.say(f"the extension of {active_lease.name} by {begun['by']} was begun; going on with it")
        return lease, end
    opens = lease.end - EXTENSION_WINDOW
    if reconciler.clock.now() < opens:
        raise ExtensionRefused(
            f"lease {active_lease.name} can be extended from {time_in_words(opens, local_zone())} on"
        )
    return lease, lease.end + by


def release(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease) -> None:
    """Give back servers, volumes, addresses, key and lease, and ask every service whether anything is left."""
    with reconciler.journal.alone(active_lease.name):
        ids = [one.id for one in reconciler.ask(site.servers) if one.tag == active_lease.tag]
        clear(site, reconciler, active_lease)
        for id in ids:
            forget(id, reconciler.journal.known_hosts)
        reconciler.journal.write("closed", active_lease)


@contextmanager
def release_on_exit(site: Testbed, reconciler: Reconciler, name: str) -> Iterator[None]:
    """Release what is held under that name in the end, whatever happens, and say so.

    A lease that turns out to be another's, or another than was asked for, stays as it is.
    """
    try:
        yield
    except (HeldOtherwise, NotOurs):
        raise
    except BaseException as why:
        reconciler.say(f"{str(why) or 'interrupted'}; releasing {name}")
        _give_back(site, reconciler, name)
        raise
    _give_back(site, reconciler, name)


def _give_back(site: Testbed, reconciler: Reconciler, name: str) -> None:
    """Release; where that fails or is interrupted, say what still stands, and how to be rid of it."""
    active_lease = reconciler.journal.active_lease(name)
    if active_lease is None:
        return
    try:
        release(site, reconciler, active_lease)
    except (ProvisionError, KeyboardInterrupt):
        reconciler.say(f"{name} is not released and may still cost; release it: testbed release {name}")
        reconciler.say(f"still at {site.name}: {', '.join(remains(site, active_lease)) or 'nothing that can be seen'}")
        raise
    reconciler.say(f"{name} is released; nothing is left at {site.name}")


def clear(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease) -> None:
    """Delete all at the site that carries the mark; NotReleased names what is there all the same."""
    drop_servers(site, reconciler, active_lease)
    drop_volumes(site, reconciler, active_lease)
    everything: list[tuple[Operation, Callable[[], Sequence[Thing]], Callable[[Any], None]]] = [
        (Operation.RELEASE_ADDRESS, site.addresses, site.release_address),
        (Operation.DELETE_KEY, site.keys, site.delete_key),
        (Operation.CLOSE_SSH, site.openings, site.close_ssh),
        (Operation.DELETE_LEASE, site.leases, site.delete_lease),
    ]
    for operation, listed, drop in everything:
        reconciler.remove(active_lease, operation, partial(_of, listed, active_lease.tag), drop)
    if left := reconciler.ask(lambda: remains(site, active_lease)):
        raise NotReleased(f"still at {site.name} after release: {', '.join(left)}; release again")


def things(site: Testbed) -> dict[str, Callable[[], Sequence[Thing]]]:
    """How each service is asked for what it has, by kind."""
    return {
        "lease": site.leases,
        "server": site.servers,
        "volume": site.volumes,
        "address": site.addresses,
        "key": site.keys,
        "opening": site.openings,
    }


def remains(site: Testbed, active_lease: ActiveLease) -> list[str]:
    """What is at the site under a holding's mark, in words; asked of every service."""
    return [f"{kind} {one.id}" for kind, listed in things(site).items() for one in _of(listed, active_lease.tag)]


def _of(listed: Callable[[], Sequence[Thing]], tag: str) -> list[Thing]:
    return [thing for thing in listed() if thing.tag == tag]


def _used_su(reconciler: Reconciler, site: Testbed, lease: Lease) -> float | None:
    """Service units until now; None where hosts or prices are not known. The site forgets the hosts of what is over."""
    price = {host.id: host.su_per_hour for host in reconciler.ask(site.hosts)}
    prices = [price.get(host) for host in lease.hosts or reconciler.journal.hosts(lease.id)]
    known = [one for one in prices if one is not None]
    hours = max(min(reconciler.clock.now(), lease.end) - lease.start, timedelta()) / timedelta(hours=1)
    return sum(known) * hours if prices and len(known) == len(prices) else None
