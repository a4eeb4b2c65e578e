"""Show, extend and release leases. Only resources with the lease's tag are modified."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from provision.availability.times import length_in_words, local_zone, time_in_words
from provision.errors import (
    UNTOUCHED_LEASE_ERRORS,
    BadName,
    BadTime,
    ExtensionRejected,
    NotReleased,
    ProvisionError,
    SiteError,
)
from provision.leasing.account import connect_to_site_of, verify_account
from provision.leasing.cost import cost_su, elapsed_lease_time, leased_hosts, running_cost
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import (
    ENDED_STATUSES,
    deletion_reason,
    end_when_idle_of,
    find_lease,
    format_journal_time,
    lease_data,
)
from provision.leasing.resources import (
    ResourceKind,
    all_kinds,
    delete_tagged,
    list_resources,
    list_resources_once,
    possible_kinds,
)
from provision.models import Host, Lease, Server, TimeSlot
from provision.sites.base import LeasingSite
from provision.ssh.login import forget_host_key

EXTENSION_WINDOW = timedelta(hours=48)
"""Chameleon extends a lease only in its last 48 hours, by at most LONGEST_EXTENSION."""
LONGEST_EXTENSION = timedelta(days=7)


@dataclass(frozen=True)
class LeaseSnapshot:
    """An active lease as its site reports it now.

    lease: None if the site no longer lists it. ips: floating IPs of the servers. hosts: the nodes, as far as the site
    lists them. used_su and total_su: the cost so far and until the end, service units; None if a price is unknown.
    """

    active_lease: ActiveLease
    lease: Lease | None
    servers: tuple[Server, ...]
    ips: tuple[str, ...]
    hosts: tuple[Host, ...]
    used_su: float | None
    total_su: float | None


def get_active_lease(reconciler: Reconciler, name: str) -> ActiveLease:
    """Return the active lease of that name. Raises BadName, with the names of all active leases, if there is none."""
    active_leases = reconciler.journal.active_leases()
    if name not in active_leases:
        raise BadName(f"no active lease {name!r}; active leases: {', '.join(sorted(active_leases)) or 'none'}")
    return active_leases[name]


def lease_snapshot(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease) -> LeaseSnapshot:
    """Query the site for the state of an active lease."""
    verify_account(site, reconciler, active_lease)
    lease = reconciler.query(lambda: find_lease(site, active_lease))
    servers = tuple(server for server in reconciler.query(site.servers) if server.tag == active_lease.tag)
    ids = {server.id for server in servers}
    ips = tuple(address.ip for address in reconciler.query(site.addresses) if address.server in ids)
    if lease is None:
        return LeaseSnapshot(active_lease, None, servers, ips, (), None, None)
    hosts = leased_hosts(reconciler, site, lease)
    used, total = (cost_su(hosts, time) for time in (elapsed_lease_time(reconciler, lease), lease.end - lease.start))
    return LeaseSnapshot(active_lease, lease, servers, ips, tuple(filter(None, hosts)), used, total)


def active_lease_states(reconciler: Reconciler) -> Iterator[tuple[ActiveLease, LeaseSnapshot | ProvisionError]]:
    """Yield each active lease of the journal with its state, or with the reason why its site does not report it."""
    for active_lease in reconciler.journal.active_leases().values():
        try:
            yield (
                active_lease,
                lease_snapshot(connect_to_site_of(reconciler, active_lease), reconciler, active_lease),
            )
        except ProvisionError as problem:
            yield active_lease, problem


def current_end(reconciler: Reconciler, active_lease: ActiveLease) -> datetime | None:
    """Return the lease's end as the site reports it now, else as the journal recorded it last.

    Another person may have extended the lease. A site that does not answer must not stop a run that needs the end.
    """
    with suppress(ProvisionError):
        if lease := find_lease(connect_to_site_of(reconciler, active_lease), active_lease):
            return lease.end
    return reconciler.journal.recorded_end(active_lease)


def is_leased(reconciler: Reconciler, active_lease: ActiveLease) -> bool:
    """Return whether the site lists the lease and the lease has not ended; True if the site cannot be queried."""
    try:
        lease = find_lease(connect_to_site_of(reconciler, active_lease), active_lease)
    except ProvisionError:
        return True
    return lease is not None and lease.status not in ENDED_STATUSES


def lease_deletion_message(reconciler: Reconciler, active_lease: ActiveLease) -> str:
    """Return the message that a lease was deleted, and what to do next.

    Returns '' if the lease was not set up to end itself, or if its site still lists it or does not answer.
    """
    why, end_when_idle = deletion_reason(active_lease), end_when_idle_of(active_lease)
    if not (why and end_when_idle and _is_deleted(reconciler, active_lease)):
        return ""
    fetch = f"to fetch results: rsync -a {end_when_idle.results_to}/ results/; " if end_when_idle.results_to else ""
    return f"{why}; {fetch}then run the command again for the remaining rows"


def _is_deleted(reconciler: Reconciler, active_lease: ActiveLease) -> bool:
    """Return whether the site no longer lists the lease; False if the site does not answer.

    The site still lists a lease that has reached its end.
    """
    with suppress(ProvisionError):
        return find_lease(connect_to_site_of(reconciler, active_lease), active_lease) is None
    return False


def extend(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease, by: timedelta) -> Lease:
    """Extend a lease within the site's rules. Raises ExtensionRejected with the rule or the site's reason.

    If an earlier extension by the same length was interrupted, completes it instead of extending the lease twice,
    unless something else has changed the lease's end since then.
    """
    with reconciler.journal.lock_lease(active_lease.name):
        lease, end = planned_extension(site, reconciler, active_lease, by)
        slot = TimeSlot((), lease.start, end, None)

        def find_extended_lease() -> Lease | None:
            now = find_lease(site, active_lease)
            return now if now and now.end >= end else None

        return reconciler.find_or_create(
            active_lease,
            Operation.EXTEND_LEASE,
            find_extended_lease,
            lambda: site.extend_lease(lease, slot),
            lease_data,
            by=length_in_words(by),
            end=format_journal_time(end),
        )


def planned_extension(
    site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease, by: timedelta
) -> tuple[Lease, datetime]:
    """Return the lease, and its end after an extension. by: length of the extension.

    Raises BadTime for a length that no site allows, and ExtensionRejected if the lease is over or not yet in its last
    48 hours.
    """
    if not timedelta() < by <= LONGEST_EXTENSION:
        most = length_in_words(LONGEST_EXTENSION)
        raise BadTime(f"extension by {length_in_words(by)} is not possible; allowed: more than 0m, at most {most}")
    verify_account(site, reconciler, active_lease)
    lease = reconciler.query(lambda: find_lease(site, active_lease))
    if lease is None or lease.status in ENDED_STATUSES:
        raise ExtensionRejected(f"lease {active_lease.name} has ended; lease again")
    intent = reconciler.journal.pending_intent(active_lease, Operation.EXTEND_LEASE)
    if intent.get("by") == length_in_words(by):
        end, current = datetime.fromisoformat(intent["end"]), datetime.fromisoformat(format_journal_time(lease.end))
        if current in (end - by, end):
            reconciler.report(f"resuming the interrupted extension of {active_lease.name} by {intent['by']}")
            return lease, end
    window_start = lease.end - EXTENSION_WINDOW
    if reconciler.clock.now() < window_start:
        raise ExtensionRejected(
            f"lease {active_lease.name} cannot be extended before {time_in_words(window_start, local_zone())}"
        )
    return lease, lease.end + by


def release(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease) -> None:
    """Delete all resources of the lease, and check that no service still lists one.

    Raises NotReleased if resources remain. Raises OtherAccount, and changes nothing, for a lease of another account.
    """
    with reconciler.journal.lock_lease(active_lease.name):
        verify_account(site, reconciler, active_lease)
        delete_resources(site, reconciler, active_lease)
        for machine in active_lease.machines:
            forget_host_key(machine.login.alias, reconciler.journal.known_hosts)
        reconciler.journal.write("closed", active_lease)


@contextmanager
def release_on_exit(site: LeasingSite, reconciler: Reconciler, name: str) -> Iterator[None]:
    """Release the lease of that name when the body ends, even with an error.

    Does not change a lease of somebody else or of another account, or a lease that does not match the request.
    """
    try:
        yield
    except UNTOUCHED_LEASE_ERRORS:
        raise
    except BaseException as why:
        reconciler.report(f"{str(why) or 'interrupted'}; releasing lease {name}")
        _release_or_report(site, reconciler, name)
        raise
    _release_or_report(site, reconciler, name)


def _release_or_report(site: LeasingSite, reconciler: Reconciler, name: str) -> None:
    """Release the lease; if that fails, report the remaining resources and the command that deletes them."""
    active_lease = reconciler.journal.active_lease(name)
    if active_lease is None:
        return
    try:
        release(site, reconciler, active_lease)
    except (ProvisionError, KeyboardInterrupt):
        remaining = ", ".join(list_resources_once(site, active_lease)) or "nothing"
        reconciler.report(f"{name} is not released; still at {site.name}: {remaining}; run: testbed release {name}")
        reconciler.report(running_cost(reconciler, active_lease) or "it costs nothing")
        raise
    reconciler.report(f"{name} is released; nothing is left at {site.name}")


def delete_resources(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease) -> None:
    """Delete everything at the site that has the lease's tag; the lease first, because only the lease is charged.

    A failed deletion does not stop the other deletions, and is tried once more after them. Raises NotReleased with the
    remaining resources and the reasons.
    """
    failures = _delete_kinds(reconciler, active_lease, possible_kinds(active_lease, all_kinds(site)))
    failures = _delete_kinds(reconciler, active_lease, [kind for kind, _ in failures])
    if remaining := list_resources(site, reconciler, active_lease):
        _record_remaining_leases(reconciler, active_lease, remaining)
        why = f" ({'; '.join(str(problem) for _, problem in failures)})" if failures else ""
        raise NotReleased(f"still at {site.name} after release: {', '.join(remaining)}{why}; run the release again")


def _record_remaining_leases(reconciler: Reconciler, active_lease: ActiveLease, remaining: Sequence[str]) -> None:
    """Record each lease that the site still lists after its deletion, because the site may still charge for it."""
    for kind, _, id in (line.partition(" ") for line in remaining):
        if kind == "lease":
            reconciler.journal.write("failed", active_lease, Operation.DELETE_LEASE, id=id, reason="still listed")


def _delete_kinds(
    reconciler: Reconciler, active_lease: ActiveLease, kinds: Sequence[ResourceKind]
) -> list[tuple[ResourceKind, SiteError]]:
    """Delete the lease's resources of these kinds; return the kinds whose deletion failed, with the errors."""
    failures = []
    for kind in kinds:
        try:
            delete_tagged(reconciler, active_lease, kind)
        except SiteError as problem:
            reconciler.report(f"{problem}; releasing the other resources first")
            failures.append((kind, problem))
    return failures
