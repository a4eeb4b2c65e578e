"""From a wish to an ACTIVE lease."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from provision.availability import search
from provision.availability.matching import alike, fitting, hardware
from provision.availability.times import MINUTE, local_zone, time_in_words
from provision.errors import (
    HeldOtherwise,
    LeaseFailed,
    LeaseGone,
    NoCredentials,
    NoSuchHost,
    NotEnough,
    NotOurs,
    ProvisionError,
    SiteError,
    Unreachable,
)
from provision.leasing.ledger import Act
from provision.leasing.order import OVER, Job, drop_servers, in_words, lease_data, same_hardware, slot_data
from provision.leasing.reconciler import Desk
from provision.models import Lease, Slot, Wish
from provision.sites.base import Testbed

START_GRACE_S = 15 * 60
"""How long after its start a lease may take to become ACTIVE."""
WATCH_S = 120
"""Between two looks for a block that is not there yet."""
MAY_PASS = (NotEnough, Unreachable)
"""Where a site has no slot for such a reason, it may have one later."""
CHOICES = 3
"""How often another slot is chosen when somebody else was faster."""


def choose(
    site: Testbed, desk: Desk, wish: Wish, at_once: bool = False, limit: int = 1, not_on: tuple[str, ...] = ()
) -> list[Slot]:
    """The earliest slots for a wish, on none of those hosts; with at_once, from now on.

    NotEnough, with what is free else, when there are none.
    """
    hosts = [host for host in desk.ask(site.hosts) if host.id not in not_on]
    bookings = desk.ask(site.bookings)
    now = desk.clock.now()
    wish = replace(wish, start=now) if at_once else wish
    if found := search.earliest(hosts, bookings, wish, now, limit):
        return found
    other = search.earliest(hosts, bookings, replace(wish, start=None, not_before=wish.start), now, limit=1)
    when = f" at {time_in_words(wish.start, local_zone())}" if wish.start else ""
    raise NotEnough(
        f"not enough nodes are free{when}; " + (f"the earliest: {in_words(other[0])}" if other else "none in 60 days")
    )


def choose_among(sites: Sequence[Testbed], desk: Desk, wish: Wish, at_once: bool = False, limit: int = 1) -> list[Slot]:
    """The earliest slots over several sites. A site that has no such hosts, or is not reached, is said and left out.

    Where none has a slot, NotEnough with what each said if that may change; else NoSuchHost over all sites that were
    reached, or what the first of them, or the only one, raised.
    """
    if len(sites) == 1:
        return choose(sites[0], desk, wish, at_once, limit)
    found: list[Slot] = []
    refusals: dict[str, ProvisionError] = {}
    for site in sites:
        try:
            found += choose(site, desk, wish, at_once, limit)
        except (SiteError, NoSuchHost, NoCredentials) as problem:
            refusals[site.name] = problem
    lines = [f"{name}: {problem}" for name, problem in refusals.items()]
    if not found:
        if any(isinstance(problem, MAY_PASS) for problem in refusals.values()):
            raise NotEnough("; ".join(lines))
        _refuse_unknown([site for site in sites if isinstance(refusals[site.name], NoSuchHost)], desk, wish)
        raise next(iter(refusals.values()))
    for line in lines:
        desk.say(line)
    return sorted(found, key=search.rank)[:limit]


def _refuse_unknown(sites: Sequence[Testbed], desk: Desk, wish: Wish) -> None:
    """NoSuchHost, with what is nearest over all of ``sites``, none of which has such hosts."""
    if hosts := [host for site in sites for host in desk.ask(site.hosts)]:
        alike(fitting(hosts, wish), wish.count)


def site_of_earliest(sites: Sequence[Testbed], desk: Desk, wish: Wish, at_once: bool, watch: bool) -> Testbed:
    """The site with the earliest slot; with ``watch`` looked for again and again while there is none."""
    while len(sites) > 1:
        try:
            slot = choose_among(sites, desk, wish, at_once)[0]
            return next(site for site in sites if site.name == slot.hosts[0].site)
        except NotEnough as problem:
            if not watch:
                raise
            _look_again(desk, problem)
    return sites[0]


def reserve(job: Job, watch: bool = False) -> Lease:
    """The lease of this job, there already or made now; with ``watch``, as soon as a block is free."""
    if not (job.holding.acts or job.holding.wanted):
        _refuse_others(job)
    for _ in range(CHOICES):
        if there := job.desk.ask(job.find_lease):
            _refuse_other_hosts(job, there)
            job.desk.ledger.write("done", job.opened, Act.CREATE_LEASE, **lease_data(there))
            return there
        if Act.CREATE_LEASE in job.holding.acts:
            raise _gone(job.order.name)
        slot = _watched(job) if watch else _chosen(job)
        try:
            return _lease(job, slot)
        except NotEnough as problem:
            job.desk.say(f"{problem}: somebody was faster; choosing again")
    raise NotEnough(f"somebody else was faster {CHOICES} times; try again")


def _chosen(job: Job) -> Slot:
    """The slot for the order; not on hosts that failed, where there are others like them."""
    order, failed = job.order, job.holding.failed_hosts
    if failed:
        with suppress(NoSuchHost):
            return choose(job.site, job.desk, _unnamed(job), order.at_once, not_on=failed)[0]
    return choose(job.site, job.desk, order.wish, order.at_once)[0]


def _unnamed(job: Job) -> Wish:
    """The wish; of a node by its name that of nodes with its hardware."""
    wish = job.order.wish
    own = next((host for host in job.desk.ask(job.site.hosts) if host.name == wish.node), None)
    if own is None:
        return wish
    return replace(
        wish,
        node=None,
        node_type=own.node_type,
        gpu_model=own.gpu_model,
        gpu_memory_gib=own.gpu_memory_gib,
        gpus=own.gpus,
        interconnect=own.interconnect,
    )


def _watched(job: Job) -> Slot:
    while True:
        try:
            return _chosen(job)
        except NotEnough as problem:
            _look_again(job.desk, problem)


def _look_again(desk: Desk, problem: NotEnough) -> None:
    desk.say(f"{problem}; looking again every {WATCH_S // 60} minutes")
    desk.clock.sleep(WATCH_S)


def wait_for_start(job: Job, lease: Lease) -> Lease:
    """The lease once it is ACTIVE; LeaseFailed for ERROR, which the client's own wait takes for success."""
    limit_s = max((lease.start - job.desk.clock.now()).total_seconds(), 0) + START_GRACE_S
    found = job.desk.wait(
        f"lease {lease.name}",
        lambda: still_there(job, lease),
        lambda now: now.status == "ACTIVE" or now.status in OVER,
        limit_s,
    )
    if found is None:
        raise LeaseFailed(f"lease {lease.name} did not start within {START_GRACE_S // 60} minutes of its time")
    if found.status != "ACTIVE":
        why = f" ({found.fault})" if found.fault else ""
        raise LeaseFailed(f"lease {lease.name} is {found.status}{why}; release it and lease anew")
    return found


def still_there(job: Job, lease: Lease) -> Lease:
    """The lease as it is now; LeaseGone when it is not."""
    found = next((one for one in job.site.leases() if one.id == lease.id), None)
    if found is None:
        raise _gone(lease.name)
    return found


def lease_elsewhere(job: Job, lease: Lease) -> Lease:
    """The rest of a lease's time on other hosts of the same hardware; the lease as it is where they are not free.

    All of its hosts are changed, and its servers deleted: a lease's hosts cannot be changed one by one once it is
    ACTIVE, and a host that was just given back is being cleaned. LeaseGone when the lease is not there any more.
    """
    if job.desk.ask(lambda: still_there(job, lease)).status in OVER:
        raise _gone(lease.name)
    slot = _other_slot(job, lease)
    if slot is None:
        return lease
    job.desk.say("as many other nodes of the same hardware are free")
    drop_servers(job.site, job.desk, job.opened)
    _drop(job, [lease.id])
    return wait_for_start(job, _lease(job, slot))


def _lease(job: Job, slot: Slot) -> Lease:
    job.desk.say(f"leasing {in_words(slot)}")
    lease = job.ensure(
        Act.CREATE_LEASE,
        job.find_lease,
        lambda: job.site.create_lease(job.order.name, job.opened.mark, slot),
        lease_data,
        name=job.order.name,
        **slot_data(slot),
    )
    return _settle(job, lease)


def _other_slot(job: Job, lease: Lease) -> Slot | None:
    """As many other hosts of a lease's hardware until its end; None where the site itself chooses hosts, by flavor."""
    hosts = job.desk.ask(job.site.hosts)
    own = next((host for host in hosts if host.id in lease.hosts), None)
    now = job.desk.clock.now()
    start = now.replace(second=0, microsecond=0) + MINUTE
    if own is None or own.flavor or lease.end <= start:
        return None
    spent = (*job.holding.failed_hosts, *lease.hosts)
    others = [host for host in hosts if same_hardware(host, own) and host.id not in spent]
    count = len(lease.resources)
    wish = Wish(min(lease.end - start, search.MAX_LEASE), start=start, gpus=0, count=count)
    bookings = job.desk.ask(job.site.bookings)
    found = search.earliest(others, bookings, wish, now, limit=1) if len(others) >= count else []
    return found[0] if found else None


def _refuse_others(job: Job) -> None:
    """NotOurs for a living lease of this name that is on no page of the ledger."""
    for lease in job.desk.ask(job.site.leases):
        if lease.name == job.order.name and lease.status not in OVER:
            job.desk.ledger.write("closed", job.opened)
            raise _not_ours(job, lease)


def _refuse_other_hosts(job: Job, lease: Lease) -> None:
    """HeldOtherwise for a lease whose hosts, as far as the site tells of them, are not what is wanted now.

    A node that was wanted by name may have failed, and another one like it be leased in its place.
    """
    wish = replace(job.order.wish, node=None) if job.holding.failed_hosts else job.order.wish
    hosts = [host for host in job.desk.ask(job.site.hosts) if host.id in lease.hosts]
    if not hosts:
        return
    with suppress(NoSuchHost):
        if len(lease.hosts) == wish.count and len(fitting(hosts, wish)) == len(hosts):
            return
    there = f"{len(lease.hosts)} x {hardware(hosts[0])}"
    raise HeldOtherwise(
        f"{lease.name} is held already, with {there}, which is not what is asked for now; "
        "ask for that, release it, or choose another --name"
    )


def _settle(job: Job, lease: Lease) -> Lease:
    """The one lease that stays of those of one name.

    Two may have been made at the same time from two computers, of which the older one stays, or by us, when the answer
    to a first request was lost.
    """
    living = [one for one in job.desk.ask(job.site.leases) if one.name == lease.name and one.status not in OVER]
    oldest = min(living, key=lambda one: (one.created, one.id), default=lease)
    ours = [one.id for one in living if one.mark == lease.mark and one.id != oldest.id]
    if ours:
        _drop(job, ours)
    if oldest.mark != lease.mark:
        job.desk.ledger.write("closed", job.opened)
        raise _not_ours(job, oldest)
    job.desk.ledger.write("done", job.opened, Act.CREATE_LEASE, **lease_data(oldest))
    return oldest


def _drop(job: Job, ids: list[str]) -> None:
    job.desk.remove(
        job.opened,
        Act.DELETE_LEASE,
        lambda: [one for one in job.site.leases() if one.id in ids],
        job.site.delete_lease,
    )


def _not_ours(job: Job, lease: Lease) -> NotOurs:
    return NotOurs(
        f"a lease {lease.name} is at {job.site.name} that is not in this ledger ({lease.id}); "
        "delete it there, or choose another --name"
    )


def _gone(name: str) -> LeaseGone:
    return LeaseGone(f"lease {name} is gone: deleted by others, or over; release it here and lease anew")
