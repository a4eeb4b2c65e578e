"""Run all stages at the local OpenStack cloud: reserve, boot, configure, run, evaluate, report, release.

python -m tests.testbed.chain.rehearse [RESULTS]

Real: OpenStack's services, an Ubuntu node with systemd, sshd and Docker, Ansible, the image, Slurm, papermill, training
of tiny models. Fakes: nova's hardware (machines.py boots a node instead), GPUs (the driver answers and containers get
them, but nothing computes on them), volumes, the reference API, PyTorch's own image (base_image.py).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.history import lease_record
from experiments.results.wording import format_duration
from experiments.system.files import cache_folder
from provision.leasing.doctor import TOOLS
from provision.sites.base import LeasingSite, connect_to
from provision.ssh.login import key_pair
from tests.support.needs import missing
from tests.support.services.sshd import new_key
from tests.testbed.chain.client import CARD, GPUS, PINS
from tests.testbed.chain.machines import Machines
from tests.testbed.chain.services import ServicesForNodes
from tests.testbed.chameleon.conftest import left_at
from tests.testbed.node import base_image
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import Node
from tests.testbed.openstack.local_openstack import LocalOpenStack, open_local_openstack

PROGRAMS = (*TOOLS, "mmdebstrap", "systemd-nspawn", "iptables", "gpg", "rsync", "ip")
PACKAGES = "mmdebstrap systemd-container iptables gpg rsync iproute2 openssh-client"
LEFT = 3
STORED_LEASES = Path(__file__).with_name("leases.jsonl")
"""The leases of rehearsals on two cores: what they cost, and what was predicted."""


class CloudWithNodes:
    """The local OpenStack cloud, and a real node for each of its servers."""

    def __init__(
        self, local_openstack: LocalOpenStack, site: LeasingSite, machines: Machines, key: Path, folder: Path
    ) -> None:
        self.local_openstack, self.site, self.machines = local_openstack, site, machines
        self.key, self.folder = key, folder

    def client(self, results: Path, *more: str) -> list[str]:
        """Return the command that a user would type, with options that replace the public registries."""
        return [sys.executable, "-m", "tests.testbed.chain.client", str(self.key), str(results), *more]

    def copy_logs(self, results: Path) -> None:
        """Copy the logs of the configuration to the results."""
        shutil.copytree(self.folder / "ledger" / "configure", results / "configure", dirs_exist_ok=True)


@contextlib.contextmanager
def cloud_with_nodes(folder: Path, prepare: Callable[[Node], None] = lambda node: None) -> Iterator[CloudWithNodes]:
    """Start everything in an empty folder, the user's home; meanwhile this process's environment is that user's.

    The cache folder stays the same. prepare: called with each node before it can be reached.
    """
    with ThreadPoolExecutor() as pool:
        making = pool.submit(NodeImage.make, print)
        archives = [pool.submit(base_image.base_archive, print), pool.submit(base_image.wheels, PINS, print)]
    image, shared = making.result(), [archive.result() for archive in archives]
    (folder / "openstack").mkdir()
    local_openstack = open_local_openstack(folder / "openstack")
    before = dict(os.environ)
    cache = str(cache_folder())
    os.environ.update(
        local_openstack.environment(), HOME=str(folder), TESTBED_CACHE=cache, TESTBED_LEDGER=str(folder / "ledger")
    )
    try:
        key = new_key(folder / "id")
        site = connect_to("chameleon")
        with contextlib.closing(ServicesForNodes(local_openstack.place.outer)) as services:
            machines = Machines(site, image, key_pair(key).public, [CARD] * GPUS, shared, services, prepare)
            with machines.following():
                yield CloudWithNodes(local_openstack, site, machines, key, folder)
    finally:
        os.environ.clear()
        os.environ.update(before)
        local_openstack.stop()


def copy_stored_leases(results: Path) -> None:
    """Copy the leases of stored rehearsals into results that record no leases, so that predictions use them."""
    results.mkdir(parents=True, exist_ok=True)
    if not (results / lease_record.FILE).exists():
        shutil.copy(STORED_LEASES, results / lease_record.FILE)


def main() -> int:
    if wants := missing(PROGRAMS, PACKAGES, root=True):
        print(f"rehearse: needs {wants}: it boots a node under systemd-nspawn", file=sys.stderr)
        return 2
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results").resolve()
    copy_stored_leases(results)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="testbed-rehearsal-") as folder, cloud_with_nodes(Path(folder)) as started:
        client = subprocess.Popen(started.client(results))
        with contextlib.suppress(KeyboardInterrupt):
            client.wait()
        if client.poll() is None:
            client.send_signal(signal.SIGINT)
        code = client.wait()
        left = left_at(started.site)
        if code:
            started.copy_logs(results)
    print(f"rehearsed in {format_duration(time.monotonic() - begun)}; left at the testbed: {left or 'nothing'}")
    return code or (LEFT if left else 0)


if __name__ == "__main__":
    sys.exit(main())
