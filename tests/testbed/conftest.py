"""The user's SSH key, and the marker of each group of tests that needs OpenStack, nodes or Slurm."""

from pathlib import Path

import pytest

from provision.ssh.login import KeyPair, key_pair
from tests.support.services.sshd import new_key

TEST_TIMEOUT_S = 300
"""Time limit of a test, without the start of services: a test waits for a service as long as its process runs."""
CLOUDS = 2
"""How many workers start OpenStack services in a run that has other tests too. A start takes ten seconds of a core."""
MARKERS = {"chameleon": "openstack", "openstack": "openstack", "slurm": "slurm", "node": "node", "chain": "chain"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the part of the testbed that it needs, limit its time, and divide the tests of OpenStack.

    pytest-xdist reads the groups in its own hook, so this one must come first.
    """
    folder = Path(__file__).parent
    for number, item in enumerate(items):
        if folder in item.path.parents:
            item.add_marker(marker := MARKERS[item.path.relative_to(folder).parts[0]])
            if marker == "openstack":
                item.add_marker(pytest.mark.xdist_group(f"cloud {number % CLOUDS}"))
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(new_key(tmp_path_factory.mktemp("ssh") / "id"))
