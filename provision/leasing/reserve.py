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
from provision.leasing.journal import Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import OVER, LeaseTask, drop_servers, in_words, lease_data, same_hardware, slot_data
from provision.models import Lease, Requirements, TimeSlot
from provision.sites.base import Testbed

START_GRACE_S = 15 * 60
"""How long after its start a lease may take to become ACTIVE."""
WATCH_S = 120
"""Between two looks for a block that is not there yet."""
TRANSIENT = (NotEnough, Unreachable)
"""Where a site has no slot for such a reason, it may have one later."""
CHOICES = 3
"""How often another slot is chosen when somebody else was faster."""


def choose(
    site: Testbed,
    reconciler: Reconciler,
    requirements: Requirements,
    at_once: bool = False,
    limit: int = 1,
    not_on: tuple[str, ...] = (),
) -> list[TimeSlot]:
    """The earliest slots for a wish, on none of those hosts; with at_once, from now on.

    NotEnough, with what is free else, when there are none.
    """
    hosts = [host for host in reconciler.ask(site.hosts) if host.id not in not_on]
    bookings = reconciler.ask(site.bookings)
    now = reconciler.clock.now()
    requirements = replace(requirements, start=now) if at_once else requirements
    if found := search.earliest(hosts, bookings, requirements, now, limit):
        return found
    other = search.earliest(
        hosts, bookings, replace(requirements, start=None, not_before=requirements.start), now, limit=1
    )
    when = f" at {time_in_words(requirements.start, local_zone())}" if requirements.start else ""
    raise NotEnough(
        f"not enough nodes are free{when}; " + (f"the earliest: {in_words(other[0])}" if other else "none in 60 days")
    )


def choose_among(
    sites: Sequence[Testbed], reconciler: Reconciler, requirements: Requirements, at_once: bool = False, limit: int = 1
) -> list[TimeSlot]:
    """The earliest slots over several sites. A site that has no such hosts, or is not reached, is said and left out.

    Where none has a slot, NotEnough with what each said if that may change; else NoSuchHost over all sites that were
    reached, or what the first of them, or the only one, raised.
    """
    if len(sites) == 1:
        return choose(sites[0], reconciler, requirements, at_once, limit)
    found: list[TimeSlot] = []
    refusals: dict[str, ProvisionError] = {}
    for site in sites:
        try:
            found += choose(site, reconciler, requirements, at_once, limit)
        except (SiteError, NoSuchHost, NoCredentials) as problem:
            refusals[site.name] = problem
    lines = [f"{name}: {problem}" for name, problem in refusals.items()]
    if not found:
        if any(isinstance(problem, TRANSIENT) for problem in refusals.values()):
            raise NotEnough("; ".join(lines))
        _refuse_unknown(
            [site for site in sites if isinstance(refusals[site.name], NoSuchHost)], reconciler, requirements
        )
        raise next(iter(refusals.values()))
    for line in lines:
        reconciler.say(line)
    return sorted(found, key=search.rank)[:limit]


def _refuse_unknown(sites: Sequence[Testbed], reconciler: Reconciler, requirements: Requirements) -> None:
    """NoSuchHost, with what is nearest over all of ``sites``, none of which has such hosts."""
    if hosts := [host for site in sites for host in reconciler.ask(site.hosts)]:
        alike(fitting(hosts, requirements), requirements.count)


def site_of_earliest(
    sites: Sequence[Testbed], reconciler: Reconciler, requirements: Requirements, at_once: bool, watch: bool
) -> Testbed:
    """The site with the earliest slot; with ``watch`` looked for again and again while there is none."""
    while len(sites) > 1:
        try:
            slot = choose_among(sites, reconciler, requirements, at_once)[0]
            return next(site for site in sites if site.name == slot.hosts[0].site)
        except NotEnough as problem:
            if not watch:
                raise
            _look_again(reconciler, problem)
    return sites[0]


def reserve(task: LeaseTask, watch: bool = False) -> Lease:
    """The lease of this job, there already or made now; with ``watch``, as soon as a block is free."""
    if not (task.active_lease.operations or task.active_lease.wanted):
        _refuse_others(task)
    for _ in range(CHOICES):
        if there := task.reconciler.ask(task.find_lease):
            _refuse_other_hosts(task, there)
            task.reconciler.journal.write("done", task.opened, Operation.CREATE_LEASE, **lease_data(there))
            return there
        if Operation.CREATE_LEASE in task.active_lease.operations:
            raise _gone(task.lease_request.name)
        slot = _watched(task) if watch else _chosen(task)
        try:
            return _lease(task, slot)
        except NotEnough as problem:
            task.reconciler.say(f"{problem}: somebody was faster; choosing again")
    raise NotEnough(f"somebody else was faster {CHOICES} times; try again")


def _chosen(task: LeaseTask) -> TimeSlot:
    """The slot for the order; not on hosts that failed, where there are others like them."""
    lease_request, failed = task.lease_request, task.active_lease.failed_hosts
    if failed:
        with suppress(NoSuchHost):
            return choose(task.site, task.reconciler, _unnamed(task), lease_request.at_once, not_on=failed)[0]
    return choose(task.site, task.reconciler, lease_request.requirements, lease_request.at_once)[0]


def _unnamed(task: LeaseTask) -> Requirements:
    """The wish; of a node by its name that of nodes with its hardware."""
    requirements = task.lease_request.requirements
    own = next((host for host in task.reconciler.ask(task.site.hosts) if host.name == requirements.node), None)
    if own is None:
        return requirements
    return replace(
        requirements,
        node=None,
        node_type=own.node_type,
        gpu_model=own.gpu_model,
        gpu_memory_gib=own.gpu_memory_gib,
        gpus=own.gpus,
        interconnect=own.interconnect,
    )


def _watched(task: LeaseTask) -> TimeSlot:
    while True:
        try:
            return _chosen(task)
        except NotEnough as problem:
            _look_again(task.reconciler, problem)


def _look_again(reconciler: Reconciler, problem: NotEnough) -> None:
    reconciler.say(f"{problem}; looking again every {WATCH_S // 60} minutes")
    reconciler.clock.sleep(WATCH_S)


def wait_for_start(task: LeaseTask, lease: Lease) -> Lease:
    """The lease once it is ACTIVE; LeaseFailed for ERROR, which the client's own wait takes for success."""
    limit_s = max((lease.start - task.reconciler.clock.now()).total_seconds(), 0) + START_GRACE_S
    found = task.reconciler.wait(
        f"lease {lease.name}",
        lambda: still_there(task, lease),
        lambda now: now.status == "ACTIVE" or now.status in OVER,
        limit_s,
    )
    if found is None:
        raise LeaseFailed(f"lease {lease.name} did not start within {START_GRACE_S // 60} minutes of its time")
    if found.status != "ACTIVE":
        why = f" ({found.fault})" if found.fault else ""
        raise LeaseFailed(f"lease {lease.name} is {found.status}{why}; release it and lease anew")
    return found


def still_there(task: LeaseTask, lease: Lease) -> Lease:
    """The lease as it is now; LeaseGone when it is not."""
    found = next((one for one in task.site.leases() if one.id == lease.id), None)
    if found is None:
        raise _gone(lease.name)
    return found


def lease_elsewhere(task: LeaseTask, lease: Lease) -> Lease:
    """The rest of a lease's time on other hosts of the same hardware; the lease as it is where they are not free.

    All of its hosts are changed, and its servers deleted: a lease's hosts cannot be changed one by one once it is
    ACTIVE, and a host that was just given back is being cleaned. LeaseGone when the lease is not there any more.
    """
    if task.reconciler.ask(lambda: still_there(task, lease)).status in OVER:
        raise _gone(lease.name)
    slot = _other_slot(task, lease)
    if slot is None:
        return lease
    task.reconciler.say("as many other nodes of the same hardware are free")
    drop_servers(task.site, task.reconciler, task.opened)
    _drop(task, [lease.id])
    return wait_for_start(task, _lease(task, slot))


def _lease(task: LeaseTask, slot: TimeSlot) -> Lease:
    task.reconciler.say(f"leasing {in_words(slot)}")
    lease = task.ensure(
        Operation.CREATE_LEASE,
        task.find_lease,
        lambda: task.site.create_lease(task.lease_request.name, task.opened.tag, slot),
        lease_data,
        name=task.lease_request.name,
        **slot_data(slot),
    )
    return _settle(task, lease)


def _other_slot(task: LeaseTask, lease: Lease) -> TimeSlot | None:
    """As many other hosts of a lease's hardware until its end; None where the site itself chooses hosts, by flavor."""
    hosts = task.reconciler.ask(task.site.hosts)
    own = next((host for host in hosts if host.id in lease.hosts), None)
    now = task.reconciler.clock.now()
    start = now.replace(second=0, microsecond=0) + MINUTE
    if own is None or own.flavor or lease.end <= start:
        return None
    spent = (*task.active_lease.failed_hosts, *lease.hosts)
    others = [host for host in hosts if same_hardware(host, own) and host.id not in spent]
    count = len(lease.resources)
    requirements = Requirements(min(lease.end - start, search.MAX_LEASE), start=start, gpus=0, count=count)
    bookings = task.reconciler.ask(task.site.bookings)
    found = search.earliest(others, bookings, requirements, now, limit=1) if len(others) >= count else []
    return found[0] if found else None


def _refuse_others(task: LeaseTask) -> None:
    """NotOurs for a living lease of this name that is on no page of the ledger."""
    for lease in task.reconciler.ask(task.site.leases):
        if lease.name == task.lease_request.name and lease.status not in OVER:
            task.reconciler.journal.write("closed", task.opened)
            raise _not_ours(task, lease)


def _refuse_other_hosts(task: LeaseTask, lease: Lease) -> None:
    """HeldOtherwise for a lease whose hosts, as far as the site tells of them, are not what is wanted now.

    A node that was wanted by name may have failed, and another one like it be leased in its place.
    """
    requirements = (
        replace(task.lease_request.requirements, node=None)
        if task.active_lease.failed_hosts
        else task.lease_request.requirements
    )
    hosts = [host for host in task.reconciler.ask(task.site.hosts) if host.id in lease.hosts]
    if not hosts:
        return
    with suppress(NoSuchHost):
        if len(lease.hosts) == requirements.count and len(fitting(hosts, requirements)) == len(hosts):
            return
    there = f"{len(lease.hosts)} x {hardware(hosts[0])}"
    raise HeldOtherwise(
        f"{lease.name} is held already, with {there}, which is not what is asked for now; "
        "ask for that, release it, or choose another --name"
    )


def _settle(task: LeaseTask, lease: Lease) -> Lease:
    """The one lease that stays of those of one name.

    Two may have been made at the same time from two computers, of which the older one stays, or by us, when the answer
    to a first request was lost.
    """
    living = [one for one in task.reconciler.ask(task.site.leases) if one.name == lease.name and one.status not in OVER]
    oldest = min(living, key=lambda one: (one.created, one.id), default=lease)
    ours = [one.id for one in living if one.tag == lease.tag and one.id != oldest.id]
    if ours:
        _drop(task, ours)
    if oldest.tag != lease.tag:
        task.reconciler.journal.write("closed", task.opened)
        raise _not_ours(task, oldest)
    task.reconciler.journal.write("done", task.opened, Operation.CREATE_LEASE, **lease_data(oldest))
    return oldest


def _drop(task: LeaseTask, ids: list[str]) -> None:
    task.reconciler.remove(
        task.opened,
        Operation.DELETE_LEASE,
        lambda: [one for one in task.site.leases() if one.id in ids],
        task.site.delete_lease,
    )


def _not_ours(task: LeaseTask, lease: Lease) -> NotOurs:
    return NotOurs(
        f"a lease {lease.name} is at {task.site.name} that is not in this ledger ({lease.id}); "
        "delete it there, or choose another --name"
    )


def _gone(name: str) -> LeaseGone:
    return LeaseGone(f"lease {name} is gone: deleted by others, or over; release it here and lease anew")
