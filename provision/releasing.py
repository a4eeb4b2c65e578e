"""What is held: seen, made longer, given back. Nothing is touched that does not carry our mark."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from provision.acting import Desk
from provision.errors import BadName, ExtensionRefused, HeldOtherwise, NotOurs, NotReleased, ProvisionError
from provision.job import OVER, drop_servers, find_lease, lease_data, text
from provision.ledger import Act, Holding
from provision.model import Host, Lease, Server, Slot, Thing
from provision.site import Testbed
from provision.ssh import forget
from provision.times import local_zone, time_in_words

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
    cost = _used_su(lease, desk.ask(site.hosts), desk.clock.now()) if lease else None
    return State(holding, lease, servers, ips, cost)


def extend(site: Testbed, desk: Desk, holding: Holding, by: timedelta) -> Lease:
    """Make a lease longer, within the site's rules; ExtensionRefused says which one or what the site says."""
    with desk.ledger.alone(holding.name):
        lease = desk.ask(lambda: find_lease(site, holding))
        if lease is None or lease.status in OVER:
            raise ExtensionRefused(f"lease {holding.name} is over; lease anew")
        opens = lease.end - EXTENSION_WINDOW
        if desk.clock.now() < opens:
            raise ExtensionRefused(f"lease {holding.name} can be extended from {time_in_words(opens, local_zone())} on")
        if not timedelta() < by <= LONGEST_EXTENSION:
            raise ExtensionRefused(f"lease {holding.name} can be extended by more than nothing and at most 7 days")
        slot = Slot((), lease.start, lease.end + by, None)

        def longer() -> Lease | None:
            now = find_lease(site, holding)
            return now if now and now.end >= slot.end else None

        return desk.ensure(
            holding,
            Act.EXTEND_LEASE,
            longer,
            lambda: site.extend_lease(lease, slot),
            lease_data,
            end=text(slot.end),
        )


def release(site: Testbed, desk: Desk, holding: Holding) -> None:
    """Give back servers, addresses, key and lease, and ask every service whether anything is left."""
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
    everything: list[tuple[Act, Callable[[], Sequence[Thing]], Callable[[Any], None]]] = [
        (Act.RELEASE_ADDRESS, site.addresses, site.release_address),
        (Act.DELETE_KEY, site.keys, site.delete_key),
        (Act.CLOSE_SSH, site.openings, site.close_ssh),
        (Act.DELETE_LEASE, partial(leases, site, holding), site.delete_lease),
    ]
    for act, things, drop in everything:
        desk.remove(holding, act, partial(_of, things, holding.mark), drop)
    if left := desk.ask(lambda: remains(site, holding)):
        raise NotReleased(f"still at {site.name} after release: {', '.join(left)}; release again")


def leases(site: Testbed, holding: Holding) -> list[Lease]:
    """The leases of a holding, each with its mark, also where the site keeps none."""
    carried = [one for one in site.leases() if one.mark == holding.mark]
    other = find_lease(site, holding)
    return carried or ([replace(other, mark=holding.mark)] if other else [])


def remains(site: Testbed, holding: Holding) -> list[str]:
    """What is at the site under a holding's mark, in words; asked of every service."""
    things: dict[str, Callable[[], Sequence[Thing]]] = {
        "lease": partial(leases, site, holding),
        "server": site.servers,
        "address": site.addresses,
        "key": site.keys,
        "opening": site.openings,
    }
    return [f"{kind} {one.id}" for kind, listed in things.items() for one in _of(listed, holding.mark)]


def orphans(site: Testbed, desk: Desk) -> list[Holding]:
    """What carries a mark of this program but is in no ledger here, as holdings that can be cleared."""
    known = {holding.mark for holding in desk.ledger.holdings().values()}
    sources: tuple[Callable[[], Sequence[Thing]], ...] = (
        site.leases,
        site.servers,
        site.addresses,
        site.keys,
        site.openings,
    )
    marks = (thing.mark for source in sources for thing in desk.ask(source))
    return [Holding("", mark, site.name, "") for mark in dict.fromkeys(marks) if mark and mark not in known]


def _of(things: Callable[[], Sequence[Thing]], mark: str) -> list[Thing]:
    return [thing for thing in things() if thing.mark == mark]


def _used_su(lease: Lease, hosts: list[Host], now: datetime) -> float | None:
    prices = [host.su_per_hour for host in hosts if host.id in lease.hosts]
    if None in prices:
        return None
    hours = max(min(now, lease.end) - lease.start, timedelta()) / timedelta(hours=1)
    return sum(filter(None, prices)) * hours
