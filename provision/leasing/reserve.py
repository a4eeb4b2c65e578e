"""Reserve hosts that meet requirements, and wait until the lease is ACTIVE."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from provision.availability import search
from provision.availability.matching import groups_of_equal_hosts, hardware_in_words, matching_hosts
from provision.availability.times import MINUTE, local_zone, start_in_words, time_in_words
from provision.errors import (
    ForeignLease,
    LeaseFailed,
    LeaseGone,
    LeaseMismatch,
    NoCredentials,
    NoSuchHost,
    NotEnoughHosts,
    ProvisionError,
    SiteError,
    Unreachable,
)
from provision.leasing.journal import Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import (
    ENDED_STATUSES,
    LeaseTask,
    deletion_reason,
    lease_data,
    same_hardware,
    slot_data,
    slot_in_words,
)
from provision.leasing.resources import delete_tagged, server_kinds
from provision.models import HostBooking, Lease, Requirements, TimeSlot
from provision.sites.base import LeasingSite

START_GRACE_S = 15 * 60
"""How long after its start a lease may take to become ACTIVE."""
SEARCH_PAUSE_S = 120
"""Pause between two searches for a time slot, seconds."""
TRANSIENT_ERRORS = (NotEnoughHosts, Unreachable)
"""After these errors, the same search may succeed later."""
CHOICE_ATTEMPTS = 3
"""How many time slots to try to reserve. Somebody else may reserve a chosen slot first."""


def choose_slots(
    site: LeasingSite,
    reconciler: Reconciler,
    requirements: Requirements,
    starts_now: bool = False,
    limit: int = 1,
    excluded_hosts: tuple[str, ...] = (),
) -> list[TimeSlot]:
    """Return up to ``limit`` time slots that meet the requirements, earliest first, without ``excluded_hosts``.

    starts_now: return only slots that begin now.

    Raises NotEnoughHosts, with the earliest alternative, if there is no such slot.
    """
    hosts = [host for host in reconciler.query(site.hosts) if host.id not in excluded_hosts]
    bookings = reconciler.query(site.bookings)
    now = reconciler.clock.now()
    requirements = replace(requirements, start=now) if starts_now else requirements
    if slots := search.earliest_slots(hosts, bookings, requirements, now, limit):
        return slots
    alternatives = search.earliest_slots(
        hosts, bookings, replace(requirements, start=None, not_before=requirements.start), now, limit=1
    )
    when = f" at {time_in_words(requirements.start, local_zone())}" if requirements.start else ""
    raise NotEnoughHosts(
        f"not enough nodes are free{when}; "
        + (f"the earliest: {slot_in_words(alternatives[0])}" if alternatives else "no time slot in the next 60 days")
    )


def choose_slots_among(
    sites: Sequence[LeasingSite],
    reconciler: Reconciler,
    requirements: Requirements,
    starts_now: bool = False,
    limit: int = 1,
) -> list[TimeSlot]:
    """Return up to ``limit`` time slots of several sites, earliest first.

    Reports the sites that do not answer or have no matching hosts.

    If no site has a slot, raises the first error that applies: NotEnoughHosts, with every site's reason, if the same
    search may succeed later; NoSuchHost if some sites have no matching hosts, with the similar names at these sites;
    the error of the first site.
    """
    if len(sites) == 1:
        return choose_slots(sites[0], reconciler, requirements, starts_now, limit)
    slots: list[TimeSlot] = []
    problems: dict[str, ProvisionError] = {}
    for site in sites:
        try:
            slots += choose_slots(site, reconciler, requirements, starts_now, limit)
        except (SiteError, NoSuchHost, NoCredentials) as problem:
            problems[site.name] = problem
    lines = [f"{name}: {problem}" for name, problem in problems.items()]
    if not slots:
        if any(isinstance(problem, TRANSIENT_ERRORS) for problem in problems.values()):
            raise NotEnoughHosts("; ".join(lines))
        without_such_hosts = [site for site in sites if isinstance(problems[site.name], NoSuchHost)]
        _reject_unknown_hosts(without_such_hosts, reconciler, requirements)
        raise next(iter(problems.values()))
    for line in lines:
        reconciler.report(line)
    return sorted(slots, key=search.slot_sort_key)[:limit]


def bookings_among(
    sites: Sequence[LeasingSite], reconciler: Reconciler, requirements: Requirements
) -> list[HostBooking]:
    """Return all users' current and future reservations of hosts with the required hardware, earliest first.

    Raises NoSuchHost if no site has matching hosts.
    """
    _reject_unknown_hosts(sites, reconciler, requirements)
    host_bookings = []
    for site in sites:
        with suppress(NoSuchHost):
            hosts = {host.id: host for host in matching_hosts(reconciler.query(site.hosts), requirements)}
            bookings = [booking for booking in reconciler.query(site.bookings) if booking.host_id in hosts]
            host_bookings += [HostBooking(hosts[booking.host_id], booking.start, booking.end) for booking in bookings]
    now = reconciler.clock.now()
    current = (booking for booking in host_bookings if booking.end > now)
    return sorted(current, key=lambda booking: (booking.start, booking.host.name))


def _reject_unknown_hosts(sites: Sequence[LeasingSite], reconciler: Reconciler, requirements: Requirements) -> None:
    """Raise NoSuchHost, with the most similar names at all ``sites``, if no site has matching hosts."""
    if hosts := [host for site in sites for host in reconciler.query(site.hosts)]:
        groups_of_equal_hosts(matching_hosts(hosts, requirements), requirements.host_count)


def site_with_earliest_slot(
    sites: Sequence[LeasingSite], reconciler: Reconciler, requirements: Requirements, starts_now: bool, watch: bool
) -> LeasingSite:
    """Return the site with the earliest time slot; with ``watch``, search until there is one."""
    while len(sites) > 1:
        try:
            slot = choose_slots_among(sites, reconciler, requirements, starts_now)[0]
            return next(site for site in sites if site.name == slot.hosts[0].site)
        except NotEnoughHosts as problem:
            if not watch:
                raise
            _pause_search(reconciler, problem)
    return sites[0]


def reserve(task: LeaseTask, watch: bool = False) -> Lease:
    """Return the task's lease; create it if it does not exist. With ``watch``, wait until a time slot is free."""
    if not (task.active_lease.outcomes or task.active_lease.intents):
        _reject_foreign_lease(task)
    for _ in range(CHOICE_ATTEMPTS):
        if existing := task.reconciler.query(task.find_lease):
            _reject_mismatch(task, existing)
            task.reconciler.journal.write("done", task.initial_record, Operation.CREATE_LEASE, **lease_data(existing))
            return existing
        if Operation.CREATE_LEASE in task.active_lease.outcomes:
            raise lease_gone_error(task)
        slot = _wait_for_slot(task) if watch else _choose_slot(task)
        try:
            return _create_lease(task, slot)
        except NotEnoughHosts as problem:
            task.reconciler.report(f"{problem}: somebody else reserved this slot first; choosing another slot")
    raise NotEnoughHosts(
        f"somebody else reserved the chosen slot first, {CHOICE_ATTEMPTS} times; run the command again"
    )


def _choose_slot(task: LeaseTask) -> TimeSlot:
    """Return a slot that meets the request, without hosts that failed to boot if the site has others."""
    lease_request, failed = task.lease_request, task.active_lease.failed_hosts
    if failed:
        with suppress(NoSuchHost):
            return choose_slots(
                task.site,
                task.reconciler,
                _same_hardware_requirements(task),
                lease_request.starts_now,
                excluded_hosts=failed,
            )[0]
    return choose_slots(task.site, task.reconciler, lease_request.requirements, lease_request.starts_now)[0]


def _same_hardware_requirements(task: LeaseTask) -> Requirements:
    """Return the request's requirements, with a requested node's hardware in place of its name."""
    requirements = task.lease_request.requirements
    named = next((host for host in task.reconciler.query(task.site.hosts) if host.name == requirements.node), None)
    if named is None:
        return requirements
    return replace(
        requirements,
        node=None,
        node_type=named.node_type,
        gpu_model=named.gpu_model,
        gpu_memory_gib=named.gpu_memory_gib,
        gpus=named.gpus,
        interconnect=named.interconnect,
    )


def _wait_for_slot(task: LeaseTask) -> TimeSlot:
    while True:
        try:
            return _choose_slot(task)
        except NotEnoughHosts as problem:
            _pause_search(task.reconciler, problem)


def _pause_search(reconciler: Reconciler, problem: NotEnoughHosts) -> None:
    reconciler.report(f"{problem}; searching again every {SEARCH_PAUSE_S // 60} minutes")
    reconciler.clock.sleep(SEARCH_PAUSE_S)


def wait_for_start(task: LeaseTask, lease: Lease) -> Lease:
    """Return the lease once it is ACTIVE. Raises LeaseFailed if it ends before it is ACTIVE, or starts too late."""
    limit_s = max((lease.start - task.reconciler.clock.now()).total_seconds(), 0) + START_GRACE_S
    found = task.reconciler.wait(
        f"lease {lease.name}",
        lambda: current_lease(task, lease),
        lambda now: now.status == "ACTIVE" or now.status in ENDED_STATUSES,
        limit_s,
        remaining=lambda now: start_in_words(now.start, task.reconciler.clock.now()),
    )
    if found is None:
        moved = task.reconciler.query(lambda: current_lease(task, lease))
        if moved.start > lease.start:
            return wait_for_start(task, moved)
        late = f"did not start within {START_GRACE_S // 60} minutes of its start time"
        raise LeaseFailed(f"lease {lease.name} {late}; release it and lease again")
    if found.status != "ACTIVE":
        why = f" ({found.fault})" if found.fault else ""
        raise LeaseFailed(f"lease {lease.name} is {found.status}{why}; release it and lease again")
    return found


def current_lease(task: LeaseTask, lease: Lease) -> Lease:
    """Return the lease's current state. Raises LeaseGone if it no longer exists."""
    current = next((listed for listed in task.site.leases() if listed.id == lease.id), None)
    if current is None:
        raise lease_gone_error(task)
    return current


def move_to_other_hosts(task: LeaseTask, lease: Lease) -> Lease:
    """Lease other hosts of the same hardware for the rest of the time; return ``lease`` unchanged if none are free.

    Replaces all hosts and deletes all servers, because a site cannot replace single hosts of an ACTIVE lease, and a
    released host is unavailable while the site cleans it. Raises LeaseGone if the lease no longer exists.
    """
    now = task.reconciler.query(lambda: current_lease(task, lease))
    if now.status in ENDED_STATUSES:
        raise lease_gone_error(task)
    slot = _slot_on_other_hosts(task, replace(lease, end=now.end))
    if slot is None:
        return lease
    task.reconciler.report("enough other nodes of the same hardware are free; moving the lease to them")
    delete_tagged(task.reconciler, task.initial_record, server_kinds(task.site)[0])
    _delete_leases(task, [lease.id])
    return wait_for_start(task, _create_lease(task, slot))


def _create_lease(task: LeaseTask, slot: TimeSlot) -> Lease:
    task.reconciler.report(f"leasing {slot_in_words(slot)}")
    lease = task.find_or_create(
        Operation.CREATE_LEASE,
        task.find_lease,
        lambda: task.site.create_lease(task.lease_request.name, task.initial_record.tag, slot),
        lease_data,
        name=task.lease_request.name,
        **slot_data(slot),
    )
    return _keep_oldest(task, lease)


def _slot_on_other_hosts(task: LeaseTask, lease: Lease) -> TimeSlot | None:
    """Return a slot on as many other hosts of the same hardware, until the lease's end; None if there is no such slot.

    Returns None for a flavor, because the site itself chooses the hosts of flavors.
    """
    hosts = task.reconciler.query(task.site.hosts)
    leased_host = next((host for host in hosts if host.id in lease.hosts), None)
    now = task.reconciler.clock.now()
    start = now.replace(second=0, microsecond=0) + MINUTE
    if leased_host is None or leased_host.is_flavor or lease.end <= start:
        return None
    excluded = (*task.active_lease.failed_hosts, *lease.hosts)
    others = [host for host in hosts if same_hardware(host, leased_host) and host.id not in excluded]
    count = len(lease.reservation_ids)
    requirements = Requirements(min(lease.end - start, search.MAX_LEASE), start=start, gpus=0, host_count=count)
    bookings = task.reconciler.query(task.site.bookings)
    slots = search.earliest_slots(others, bookings, requirements, now, limit=1) if len(others) >= count else []
    return slots[0] if slots else None


def _reject_foreign_lease(task: LeaseTask) -> None:
    """Raise ForeignLease for a current lease of this name that is not in the journal."""
    for lease in task.reconciler.query(task.site.leases):
        if lease.name == task.lease_request.name and lease.status not in ENDED_STATUSES:
            task.reconciler.journal.write("closed", task.initial_record)
            raise _foreign_lease_error(task, lease)


def _reject_mismatch(task: LeaseTask, lease: Lease) -> None:
    """Raise LeaseMismatch for a lease whose known hosts do not meet the requirements.

    A node that was requested by name may have failed, and another node with the same hardware may have replaced it.
    """
    requirements = (
        replace(task.lease_request.requirements, node=None)
        if task.active_lease.failed_hosts
        else task.lease_request.requirements
    )
    hosts = [host for host in task.reconciler.query(task.site.hosts) if host.id in lease.hosts]
    if not hosts:
        return
    with suppress(NoSuchHost):
        if len(lease.hosts) == requirements.host_count and len(matching_hosts(hosts, requirements)) == len(hosts):
            return
    actual = f"{len(lease.hosts)} x {hardware_in_words(hosts[0])}"
    raise LeaseMismatch(
        f"lease {lease.name} is active with {actual}, which does not meet the request; "
        "request this hardware, release the lease, or choose another --name"
    )


def _keep_oldest(task: LeaseTask, lease: Lease) -> Lease:
    """Delete this task's leases of this name except the oldest lease of this name, and return the oldest.

    Several leases of one name exist if two computers created one at the same time, or if the response to a request was
    lost. Two computers agree on the oldest lease only if both see all leases that were created in the same second.
    Therefore, the program first waits until the site lists all of them. Raises ForeignLease if another computer created
    the oldest lease.
    """
    task.reconciler.clock.sleep(task.site.listing_delay_s)
    leases = [listed for listed in task.reconciler.query(task.site.leases) if listed.name == lease.name]
    current = [listed for listed in leases if listed.status not in ENDED_STATUSES]
    oldest = min(current, key=lambda listed: (listed.created, listed.id), default=lease)
    younger_ids = [listed.id for listed in current if listed.tag == lease.tag and listed.id != oldest.id]
    if younger_ids:
        _delete_leases(task, younger_ids)
    if oldest.tag != lease.tag:
        task.reconciler.journal.write("closed", task.initial_record)
        raise _foreign_lease_error(task, oldest)
    task.reconciler.journal.write("done", task.initial_record, Operation.CREATE_LEASE, **lease_data(oldest))
    return oldest


def _delete_leases(task: LeaseTask, ids: list[str]) -> None:
    task.reconciler.delete_all(
        task.initial_record,
        Operation.DELETE_LEASE,
        lambda: [lease for lease in task.site.leases() if lease.id in ids],
        task.site.delete_lease,
    )


def _foreign_lease_error(task: LeaseTask, lease: Lease) -> ForeignLease:
    return ForeignLease(
        f"{task.site.name} has a lease {lease.name} ({lease.id}) that is not in the journal on this computer; "
        "delete it at the site, or choose another --name"
    )


def lease_gone_error(task: LeaseTask) -> LeaseGone:
    """Return the error for a lease that has ended, or that the site no longer lists."""
    name, why = task.lease_request.name, deletion_reason(task.active_lease)
    what = why or "no longer exists: somebody else deleted it, or it has ended"
    return LeaseGone(f"lease {name} {what}; release it here and lease again")
