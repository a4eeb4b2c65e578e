"""The SSH key of whoever uses the testbed in a box."""

import pytest

from provision.ssh.login import KeyPair, key_pair
from tests.provision.ssh.sshd import new_key


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(new_key(tmp_path_factory.mktemp("ssh") / "id"))
