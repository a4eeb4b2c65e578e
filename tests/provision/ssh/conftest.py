"""A real SSH server that the tests of one module share."""

import pytest

from tests.support.services.sshd import Sshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()
