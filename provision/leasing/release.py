"""What is held: seen, made longer, given back. Nothing is touched that does not carry our mark."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from provision.availability.times import length_in_words, local_zone, time_in_words
from provision.errors import BadName, BadTime, ExtensionRefused, HeldOtherwise, NotOurs, NotReleased, ProvisionError
from provision.leasing.ledger import Act, Holding
from provision.leasing.order import OVER, drop_servers, drop_volumes, find_lease, lease_data, text
from provision.leasing.reconciler import Desk
from provision.models import Lease, Server, Slot, Thing
from provision.sites.base import Testbed
from provision.ssh.login import forget

EXTENSION_WINDOW = timedelta(hours=48)
"""A lease can be made longer in its last 48 hours only, by at most LONGEST_EXTENSION (Chameleon's rules)."""
LONGEST_EXTENSION = timedelta(days=7)


@dataclass(frozen=True)
class State:
    """What is held under a name, as the site tells now: lease is None when it is gone. used_su: cost until now."""

    holding: Holding
    lease: Lease | None
    servers: tuple[Server, ...]
    ips: tuple[str, ...]
    used_su: float | None


def held(desk: Desk, name: str) -> Holding:
    """The holding of that name; BadName lists those there are."""
    holdings = desk.ledger.holdings()
    if name not in holdings:
        raise BadName(f"nothing is held as {name!r}; held: {', '.join(sorted(holdings)) or 'nothing'}")
    return holdings[name]


def state(site: Testbed, desk: Desk, holding: Holding) -> State:
    lease = desk.ask(lambda: find_lease(site, holding))
    servers = tuple(one for one in desk.ask(site.servers) if one.mark == holding.mark)
    ids = {server.id for server in servers}
    ips = tuple(one.ip for one in desk.ask(site.addresses) if one.server in ids)
    cost = _used_su(desk, site, lease) if lease else None
    return State(holding, lease, servers, ips, cost)


def extend(site: Testbed, desk: Desk, holding: Holding, by: timedelta) -> Lease:
    """Make a lease longer, within the site's rules; ExtensionRefused says which one or what the site says.

    An extension by as much that was begun and never finished is gone on with.
    """
    with desk.ledger.alone(holding.name):
        lease, end = extension(site, desk, holding, by)
        slot = Slot((), lease.start, end, None)

        def longer() -> Lease | None:
            now = find_lease(site, holding)
            return now if now and now.end >= end else None

        return desk.ensure(
            holding,
            Act.EXTEND_LEASE,
            longer,
            lambda: site.extend_lease(lease, slot),
            lease_data,
            by=length_in_words(by),
            end=text(end),
        )


def extension(site: Testbed, desk: Desk, holding: Holding, by: timedelta) -> tuple[Lease, datetime]:
    """The lease as it is, and the end that it would be given.

    BadTime for a length that no site allows; ExtensionRefused where the lease is over, or not yet in its last 48 hours.
    """
    if not timedelta() < by <= LONGEST_EXTENSION:
        most = length_in_words(LONGEST_EXTENSION)
        raise BadTime(f"extension by {length_in_words(by)}: allowed: more than nothing, at most {most}")
    lease = desk.ask(lambda: find_lease(site, holding))
    if lease is None or lease.status in OVER:
        raise ExtensionRefused(f"lease {holding.name} is over; lease anew")
    begun = desk.ledger.begun(holding, Act.EXTEND_LEASE)
    if begun.get("by") == length_in_words(by) and (end := datetime.fromisoformat(begun["end"])) >= lease.end:
        desk.say(f"the extension of {holding.name} by {begun['by']} was begun; going on with it")
        return lease, end
    opens = lease.end - EXTENSION_WINDOW
    if desk.clock.now() < opens:
        raise ExtensionRefused(f"lease {holding.name} can be extended from {time_in_words(opens, local_zone())} on")
    return lease, lease.end + by


def release(site: Testbed, desk: Desk, holding: Holding) -> None:
    """Give back servers, volumes, addresses, key and lease, and ask every service whether anything is left."""
    with desk.ledger.alone(holding.name):
        ids = [one.id for one in desk.ask(site.servers) if one.mark == holding.mark]
        clear(site, desk, holding)
        for id in ids:
            forget(id, desk.ledger.known_hosts)
        desk.ledger.write("closed", holding)


@contextmanager
def given_back(site: Testbed, desk: Desk, name: str) -> Iterator[None]:
    """Release what is held under that name in the end, whatever happens, and say so.

    A lease that turns out to be another's, or another than was asked for, stays as it is.
    """
    try:
        yield
    except (HeldOtherwise, NotOurs):
        raise
    except BaseException as why:
        desk.say(f"{str(why) or 'interrupted'}; releasing {name}")
        _give_back(site, desk, name)
        raise
    _give_back(site, desk, name)


def _give_back(site: Testbed, desk: Desk, name: str) -> None:
    """Release; where that fails or is interrupted, say what still stands, and how to be rid of it."""
    holding = desk.ledger.holding(name)
    if holding is None:
        return
    try:
        release(site, desk, holding)
    except (ProvisionError, KeyboardInterrupt):
        desk.say(f"{name} is not released and may still cost; release it: testbed release {name}")
        desk.say(f"still at {site.name}: {', '.join(remains(site, holding)) or 'nothing that can be seen'}")
        raise
    desk.say(f"{name} is released; nothing is left at {site.name}")


def clear(site: Testbed, desk: Desk, holding: Holding) -> None:
    """Delete all at the site that carries the mark; NotReleased names what is there all the same."""
    drop_servers(site, desk, holding)
    drop_volumes(site, desk, holding)
    everything: list[tuple[Act, Callable[[], Sequence[Thing]], Callable[[Any], None]]] = [
        (Act.RELEASE_ADDRESS, site.addresses, site.release_address),
        (Act.DELETE_KEY, site.keys, site.delete_key),
        (Act.CLOSE_SSH, site.openings, site.close_ssh),
        (Act.DELETE_LEASE, site.leases, site.delete_lease),
    ]
    for act, listed, drop in everything:
        desk.remove(holding, act, partial(_of, listed, holding.mark), drop)
    if left := desk.ask(lambda: remains(site, holding)):
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


def remains(site: Testbed, holding: Holding) -> list[str]:
    """What is at the site under a holding's mark, in words; asked of every service."""
    return [f"{kind} {one.id}" for kind, listed in things(site).items() for one in _of(listed, holding.mark)]


def _of(listed: Callable[[], Sequence[Thing]], mark: str) -> list[Thing]:
    return [thing for thing in listed() if thing.mark == mark]


def _used_su(desk: Desk, site: Testbed, lease: Lease) -> float | None:
    """Service units until now; None where hosts or prices are not known. The site forgets the hosts of what is over."""
    price = {host.id: host.su_per_hour for host in desk.ask(site.hosts)}
    prices = [price.get(host) for host in lease.hosts or desk.ledger.hosts(lease.id)]
    known = [one for one in prices if one is not None]
    hours = max(min(desk.clock.now(), lease.end) - lease.start, timedelta()) / timedelta(hours=1)
    return sum(known) * hours if prices and len(known) == len(prices) else None
