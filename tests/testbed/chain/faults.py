"""Faults that a rehearsal injects together, each with the evidence that it happened."""

import socket
import time
from datetime import datetime
from typing import NamedTuple

from provision.models import Lease
from provision.sites.base import LeasingSite
from provision.sites.openstack import BLAZAR_TIME_FORMAT, Cloud
from tests.support.processes.waiting import wait_for
from tests.testbed.node import network
from tests.testbed.node.node import Node
from tests.testbed.openstack.service_proxy import ServiceProxy

ARCHIVE, SECURITY = "archive.ubuntu.com", "security.ubuntu.com"
HTTP = 80
SLOW_BYTES_PER_S = 500_000
LEAST_BYTES = 20_000_000
"""The packages of Docker and Slurm are larger than this."""
PROBED_PORT = 8099
PROBE_LIMIT_S = 5.0


class Check(NamedTuple):
    """What a rehearsal checked, whether it holds, and the evidence in words."""

    name: str
    holds: bool
    evidence: str


class SlowMirror(ServiceProxy):
    """Ubuntu's package archive in the network of the nodes, at SLOW_BYTES_PER_S for each connection."""

    def __init__(self) -> None:
        self.passed_bytes, self.waited_s = 0, 0.0
        network.create_network()
        super().__init__((network.GATEWAY, HTTP), (ARCHIVE, HTTP))

    def redirect(self, node: Node) -> None:
        """Let the node install its packages from this mirror."""
        hosts, sources = node.root / "etc/hosts", node.root / "etc/apt/sources.list"
        hosts.write_text(f"{hosts.read_text()}{network.GATEWAY} {ARCHIVE}\n")
        sources.write_text(sources.read_text().replace(SECURITY, ARCHIVE))

    def check(self) -> Check:
        """Check that the node's packages came through this mirror, and that it delayed them."""
        least_s = LEAST_BYTES / SLOW_BYTES_PER_S
        evidence = f"{self.passed_bytes / 1e6:.0f} MB at {SLOW_BYTES_PER_S / 1e6} MB/s, {self.waited_s:.0f} s of delay"
        slow = self.passed_bytes >= LEAST_BYTES and self.waited_s >= least_s
        return Check("fault: the package mirror is slow", slow, evidence)

    def _pass(self, data: bytes, sink: socket.socket) -> None:
        delay_s = len(data) / SLOW_BYTES_PER_S
        time.sleep(delay_s)
        self.passed_bytes += len(data)
        self.waited_s += delay_s
        super()._pass(data, sink)


def check_firewall(node: Node) -> Check:
    """Check that the node's firewalld runs, and rejects a port on which a program of the node listens."""
    state = node.run("sh", "-c", "firewall-cmd --state 2>&1 || true").strip()
    unit = f"probed-{PROBED_PORT}"
    node.run("systemd-run", "--quiet", f"--unit={unit}", "python3", "-m", "http.server", str(PROBED_PORT))
    try:
        wait_for(lambda: f":{PROBED_PORT} " in node.run("ss", "--listening", "--tcp", "--numeric", "--no-header"))
        answer = _connect((node.address, PROBED_PORT))
    finally:
        node.run("systemctl", "stop", unit)
    rejected = state == "running" and bool(answer)
    return Check("fault: firewalld is active", rejected, f"{state}; another port than SSH: {answer or 'connected'}")


def set_end(site: LeasingSite, lease: Lease, end: datetime) -> Lease:
    """Change the end of a lease with an API call, as a dashboard does; return the lease as Blazar lists it."""
    assert isinstance(site, Cloud)
    site.blazar.lease.update(lease.id, end_date=f"{end:{BLAZAR_TIME_FORMAT}}")
    (changed,) = (one for one in site.leases() if one.id == lease.id)
    return changed


def _connect(address: tuple[str, int]) -> str:
    """Return why there is no connection; '' if there is one."""
    try:
        socket.create_connection(address, timeout=PROBE_LIMIT_S).close()
    except OSError as problem:
        return str(problem)
    return ""
