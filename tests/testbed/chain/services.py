"""Let nodes reach Keystone and Blazar at the loopback addresses of these services, which are on this machine."""

from contextlib import suppress

from tests.testbed.node import network
from tests.testbed.node.node import Node
from tests.testbed.openstack.service_proxy import ServiceProxy
from tests.testbed.openstack.settings import PORTS

SERVICES = ("keystone", "blazar")
PROXY = "/usr/lib/systemd/systemd-socket-proxyd"


class ServicesForNodes:
    """Proxies in the network of the nodes. Each forwards to the service at ``address`` with the same port."""

    def __init__(self, address: str) -> None:
        network.create_network()
        self._address = address
        ports = [PORTS[name] for name in SERVICES]
        self._proxies = {port: ServiceProxy((network.GATEWAY, 0), (address, port)) for port in ports}

    def connect(self, node: Node) -> bool:
        """Let the services answer on the node; return whether the node has booted far enough for it."""
        commands = [
            f"systemctl --quiet is-active testbed-{port}.socket || systemd-run --quiet --unit=testbed-{port}"
            f" --socket-property=ListenStream={self._address}:{port} {PROXY} {network.GATEWAY}:{proxy.port}"
            for port, proxy in self._proxies.items()
        ]
        with suppress(RuntimeError):
            node.run("sh", "-ec", "\n".join(commands))
            return True
        return False

    def close(self) -> None:
        """Close the proxies."""
        for proxy in self._proxies.values():
            proxy.close()
        network.remove_network()
