"""What the tests against real services have in common: their place in the queue, and the SSH key of their user."""

from pathlib import Path

import pytest

from provision.ssh import KeyPair, key_pair
from tests.provision.sshd import new_key

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They share servers, and some measure time: one follows the other, while a second worker has all other tests.

    They take longest, and go first.
    """
    items.sort(key=lambda item: HERE not in item.path.parents)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("testbed"))


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(new_key(tmp_path_factory.mktemp("ssh") / "id"))
