"""From a wish to machines that answer. Interrupted anywhere, the same order goes on from there."""

from dataclasses import dataclass

from provision.errors import NotOurs
from provision.leasing.boot import bring_up
from provision.leasing.ledger import Holding, Machine
from provision.leasing.order import Job, Order, in_words
from provision.leasing.reconciler import Desk
from provision.leasing.reserve import choose, reserve, wait_for_start
from provision.models import Lease
from provision.sites.base import Testbed


@dataclass(frozen=True)
class Leased:
    """What an order brought: machines and image_id only once they are up."""

    lease: Lease
    machines: tuple[Machine, ...] = ()
    image_id: str = ""


def plan(site: Testbed, desk: Desk, order: Order) -> list[str]:
    """What ``lease`` would ask of which service, in lines; nothing of it is asked."""
    if desk.ledger.holding(order.name):
        return [f"{order.name} is held already: go on with it"]
    slot = choose(site, desk, order.wish, order.at_once)[0]
    servers = ", ".join(order.server_names)
    return [
        f"blazar: create lease {order.name} of {in_words(slot)}",
        f"nova: upload the public key of {order.key.file}",
        *(["neutron: create a security group that lets SSH through"] if site.opens_ssh else []),
        *([f"cinder: create a volume for {servers}"] if site.boots_from_volume else []),
        f"nova: create server {servers} with image {desk.ask(site.image_id)}",
        f"neutron: attach a free floating IP to {servers}, or take one",
        f"ssh: log in to {servers}",
    ]


def lease(site: Testbed, desk: Desk, order: Order, wait: bool = True, watch: bool = False) -> Leased:
    """Lease, wait, boot and reach. Without ``wait`` a lease that has not begun is left for the next run.

    With ``watch`` it looks again and again while there is no block, without end.
    """

    def waiting() -> None:
        desk.say(f"another program works on {order.name}; waiting for it")

    with desk.ledger.alone(order.name, waiting):
        job = Job(site, desk, order, _page(site, desk, order))
        reserved = reserve(job, watch)
        if not wait and reserved.start > desk.clock.now():
            return Leased(reserved)
        active = wait_for_start(job, reserved)
        image_id, machines = bring_up(job, active)
        return Leased(desk.ask(job.find_lease) or active, machines, image_id)


def _page(site: Testbed, desk: Desk, order: Order) -> Holding:
    """What the ledger has under this name already, else a new page."""
    holding = desk.ledger.holding(order.name)
    if holding and holding.site != site.name:
        raise NotOurs(f"{order.name} is held at {holding.site}; release it there first, or choose another --name")
    if holding:
        desk.say(f"{order.name} is held since {holding.since}; going on with it")
    return holding or desk.ledger.open(order.name, site.name)
