"""Real nodes for the local OpenStack cloud: for each ACTIVE server, an Ubuntu node runs until the server is deleted."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.system.files import cache_folder
from provision.errors import SiteError
from provision.models import Server
from provision.sites.base import LeasingSite
from tests.testbed.chain.services import ServicesForNodes
from tests.testbed.node import network
from tests.testbed.node.image import NodeImage, copy_root
from tests.testbed.node.node import Node
from tests.testbed.openstack.service_proxy import ServiceProxy

POLL_INTERVAL_S = 1.0
FIRST = 51
SSH = 22
DOCKER = "/var/lib/docker"


class Machines:
    """Follows the servers of ``site``: boots and stops nodes, and forwards their floating IPs to them.

    proxies: proxies to the nodes by floating IP; a fault of one drops the connections. authorized_key: installed as
    cloud-init would install nova's key. shared: see Node. Before a node can be reached, ``services`` are connected to
    it, and ``prepare`` is called with it. The next node gets Docker's data from the one before, which saves rebuilding
    images.
    """

    def __init__(
        self,
        site: LeasingSite,
        image: NodeImage,
        authorized_key: str,
        cards: Sequence[str],
        shared: Sequence[Path],
        services: ServicesForNodes,
        prepare: Callable[[Node], None],
    ) -> None:
        self._site, self._image, self._key, self._cards, self._shared = site, image, authorized_key, cards, shared
        self._services, self._prepare = services, prepare
        self.nodes: dict[str, Node] = {}
        self.proxies: dict[str, ServiceProxy] = {}
        self._over = threading.Event()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow during the block, and stop all nodes at its end."""
        thread = threading.Thread(target=self._follow)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._keep({}, {})

    def _follow(self) -> None:
        while not self._over.wait(POLL_INTERVAL_S):
            with contextlib.suppress(SiteError):
                servers = {one.id: one for one in self._site.servers() if one.status == "ACTIVE"}
                addresses = {one.ip: one.server for one in self._site.addresses() if one.server in servers}
                self._keep(servers, addresses)

    def _keep(self, servers: dict[str, Server], addresses: dict[str, str]) -> None:
        """Run exactly one node for each server and one proxy for each address."""
        for ip in self.proxies.keys() - addresses.keys():
            self.proxies.pop(ip).close()
        for id in self.nodes.keys() - servers.keys():
            self.nodes.pop(id).stop()
        for id in servers.keys() - self.nodes.keys():
            self.nodes[id] = self._booted()
        for ip in addresses.keys() - self.proxies.keys():
            node = self.nodes[addresses[ip]]
            if self._services.connect(node):
                self.proxies[ip] = ServiceProxy((ip, SSH), (node.address, SSH))

    def _booted(self) -> Node:
        taken = {node.address for node in self.nodes.values()}
        number = next(n for n in range(FIRST, 255) if f"{network.PREFIX}.{n}" not in taken)
        address, disks = f"{network.PREFIX}.{number}", {DOCKER: _disk(number)}
        node = Node(f"machine-{number}", address, self._image, self._key, self._cards, self._shared, disks)
        node.start()
        self._prepare(node)
        return node


def _disk(number: int) -> Path:
    """Return Docker's data folder for the node of that number, at first a copy of another one's."""
    folder = cache_folder() / "nodes" / f"docker-{number}"
    others = sorted(folder.parent.glob("docker-*"))
    if others and not folder.exists():
        copy_root(others[0], folder)
    return folder
