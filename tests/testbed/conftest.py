"""The user's SSH key, and the marker of each part of the testbed in a box."""

from pathlib import Path

import pytest

from provision.ssh.login import KeyPair, key_pair
from tests.support.services.sshd import new_key

MARKERS = {"chameleon": "openstack", "openstack": "openstack", "slurm": "slurm", "node": "node", "chain": "chain"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the part of the testbed that it needs."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(MARKERS[item.path.relative_to(here).parts[0]])


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(new_key(tmp_path_factory.mktemp("ssh") / "id"))
