"""Lease hosts that meet requirements, boot them and connect to them. A second run of the same request resumes."""

from dataclasses import dataclass

from provision.errors import ForeignLease, ProvisionError
from provision.leasing.account import (
    early_expiry_message,
    require_lease_credentials,
    require_unrestricted,
    verify_account,
)
from provision.leasing.boot import bring_up
from provision.leasing.cost import leased_hosts
from provision.leasing.journal import ActiveLease, Machine
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest, LeaseTask, requirements_in_words, slot_in_words
from provision.leasing.reserve import choose_slots, reserve, wait_for_start
from provision.models import Host, Lease
from provision.sites.base import BootVolumes, LeasingSite, SecurityGroups, is_virtual


@dataclass(frozen=True)
class LeaseResult:
    """The result of a lease request. hosts: its nodes, as far as the site lists them.

    machines and image_id are set only once the machines are up.
    """

    lease: Lease
    hosts: tuple[Host, ...] = ()
    machines: tuple[Machine, ...] = ()
    image_id: str = ""


def planned_calls(site: LeasingSite, reconciler: Reconciler, lease_request: LeaseRequest) -> list[str]:
    """Return the API calls that ``lease`` would make, one per line. Changes nothing."""
    if active_lease := reconciler.journal.active_lease(lease_request.name):
        verify_account(site, reconciler, active_lease)
        return [f"lease {lease_request.name} is active: resume it"]
    slot = choose_slots(site, reconciler, lease_request.requirements, lease_request.starts_now)[0]
    image_id = reconciler.query(lambda: site.image_id(lease_request.image))
    image = f"{lease_request.image} ({image_id})"
    calls = _calls_after_reservation(
        lease_request, image, isinstance(site, SecurityGroups), isinstance(site, BootVolumes)
    )
    return [f"blazar: create lease {lease_request.name} of {slot_in_words(slot)}", *calls]


def planned_calls_without_account(site_name: str, lease_request: LeaseRequest) -> list[str]:
    """Return the API calls that ``lease`` would make, without the slot and the ids that only the site knows."""
    virtual = is_virtual(site_name)
    wanted = requirements_in_words(lease_request.requirements, lease_request.starts_now)
    calls = _calls_after_reservation(lease_request, lease_request.image, virtual, virtual)
    return [f"blazar: create lease {lease_request.name} of {wanted}", *calls]


def _calls_after_reservation(
    lease_request: LeaseRequest, image: str, needs_security_group: bool, boots_from_volumes: bool
) -> list[str]:
    """Return the API calls after the reservation.

    needs_security_group, boots_from_volumes: properties of the site's servers.
    """
    servers = ", ".join(lease_request.server_names)
    return [
        f"nova: upload the public key of {lease_request.key.file}",
        *(["neutron: create a security group that admits SSH"] if needs_security_group else []),
        *([f"cinder: create a volume for {servers}"] if boots_from_volumes else []),
        f"nova: create server {servers} with image {image}",
        f"neutron: allocate one floating IP per server and attach it: {servers}",
        f"ssh: log in to {servers}",
        *(["keystone: create a credential that can only end this lease"] if lease_request.end_when_idle else []),
    ]


def lease(
    site: LeasingSite, reconciler: Reconciler, lease_request: LeaseRequest, wait: bool = True, watch: bool = False
) -> LeaseResult:
    """Reserve hosts, wait for the start of the lease, boot the servers and connect to them.

    Without ``wait``, return after the reservation if the lease starts later. With ``watch``, search until there is a
    free time slot.
    """

    def report_wait() -> None:
        reconciler.report(f"another program is working on lease {lease_request.name}; waiting for it")

    with reconciler.journal.lock_lease(lease_request.name, report_wait):
        task = LeaseTask(site, reconciler, lease_request, _open_record(site, reconciler, lease_request))
        if not task.initial_record.intents:
            _check_boot_requirements(task)
        reserved = reserve(task, watch)
        _warn_of_early_expiry(task, reserved)
        if not wait and reserved.start > reconciler.clock.now():
            return LeaseResult(reserved, _listed_hosts(task, reserved))
        active = wait_for_start(task, reserved)
        image_id, machines = bring_up(task, active)
        booted = reconciler.query(task.find_lease) or active
        return LeaseResult(booted, _listed_hosts(task, booted), machines, image_id)


def _listed_hosts(task: LeaseTask, lease: Lease) -> tuple[Host, ...]:
    return tuple(filter(None, leased_hosts(task.reconciler, task.site, lease)))


def _check_boot_requirements(task: LeaseTask) -> None:
    """Raise the site's error if a server could not boot at the site, before the lease costs anything."""
    try:
        task.reconciler.query(lambda: task.site.image_id(task.lease_request.image))
        task.reconciler.query(task.site.check_boot_requirements)
        if task.lease_request.end_when_idle:
            require_lease_credentials(task.site, task.reconciler)
    except ProvisionError:
        task.reconciler.journal.write("closed", task.initial_record)
        raise


def _warn_of_early_expiry(task: LeaseTask, reserved: Lease) -> None:
    expires_at = task.reconciler.query(task.site.credential).expires_at
    if expires_at and expires_at < reserved.end:
        message = early_expiry_message(expires_at, reserved.end)
        task.reconciler.report(f"{message}; log in again before then, so that you can release the lease")


def _open_record(site: LeasingSite, reconciler: Reconciler, lease_request: LeaseRequest) -> ActiveLease:
    """Return the journal's record of the active lease with the requested name, or a new record.

    Raises ForeignLease if the lease is at another site, OtherAccount if another account made it, and NoCredentials for
    a new lease with a restricted credential.
    """
    active_lease = reconciler.journal.active_lease(lease_request.name)
    if active_lease and active_lease.site != site.name:
        raise ForeignLease(
            f"lease {lease_request.name} is active at {active_lease.site}; "
            "release it there first, or choose another --name"
        )
    if active_lease:
        verify_account(site, reconciler, active_lease)
        reconciler.report(f"lease {lease_request.name} is active since {active_lease.since}; resuming it")
        return active_lease
    require_unrestricted(site, reconciler)
    return reconciler.journal.open_lease(lease_request.name, site.name, reconciler.query(site.identity))
