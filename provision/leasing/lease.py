"""From a wish to machines that answer. Interrupted anywhere, the same order goes on from there."""

from dataclasses import dataclass

from provision.errors import NotOurs
from provision.leasing.boot import bring_up
from provision.leasing.journal import ActiveLease, Machine
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest, LeaseTask, in_words
from provision.leasing.reserve import choose, reserve, wait_for_start
from provision.models import Lease
from provision.sites.base import Testbed


@dataclass(frozen=True)
class Leased:
    """What an order brought: machines and image_id only once they are up."""

    lease: Lease
    machines: tuple[Machine, ...] = ()
    image_id: str = ""


def plan(site: Testbed, reconciler: Reconciler, lease_request: LeaseRequest) -> list[str]:
    """What ``lease`` would ask of which service, in lines; nothing of it is asked."""
    if reconciler.journal.active_lease(lease_request.name):
        return [f"{lease_request.name} is held already: go on with it"]
    slot = choose(site, reconciler, lease_request.requirements, lease_request.at_once)[0]
    servers = ", ".join(lease_request.server_names)
    return [
        f"blazar: create lease {lease_request.name} of {in_words(slot)}",
        f"nova: upload the public key of {lease_request.key.file}",
        *(["neutron: create a security group that lets SSH through"] if site.opens_ssh else []),
        *([f"cinder: create a volume for {servers}"] if site.boots_from_volume else []),
        f"nova: create server {servers} with image {reconciler.ask(site.image_id)}",
        f"neutron: attach a free floating IP to {servers}, or take one",
        f"ssh: log in to {servers}",
    ]


def lease(
    site: Testbed, reconciler: Reconciler, lease_request: LeaseRequest, wait: bool = True, watch: bool = False
) -> Leased:
    """Lease, wait, boot and reach. Without ``wait`` a lease that has not begun is left for the next run.

    With ``watch`` it looks again and again while there is no block, without end.
    """

    def waiting() -> None:
        reconciler.say(f"another program works on {lease_request.name}; waiting for it")

    with reconciler.journal.alone(lease_request.name, waiting):
        task = LeaseTask(site, reconciler, lease_request, _page(site, reconciler, lease_request))
        reserved = reserve(task, watch)
        if not wait and reserved.start > reconciler.clock.now():
            return Leased(reserved)
        active = wait_for_start(task, reserved)
        image_id, machines = bring_up(task, active)
        return Leased(reconciler.ask(task.find_lease) or active, machines, image_id)


def _page(site: Testbed, reconciler: Reconciler, lease_request: LeaseRequest) -> ActiveLease:
    """What the ledger has under this name already, else a new page."""
    active_lease = reconciler.journal.active_lease(lease_request.name)
    if active_lease and active_lease.site != site.name:
        raise NotOurs(
            f"{lease_request.name} is held at {active_lease.site}; release it there first, or choose another --name"
        )
    if active_lease:
        reconciler.say(f"{lease_request.name} is held since {active_lease.since}; going on with it")
    return active_lease or reconciler.journal.open(lease_request.name, site.name)
