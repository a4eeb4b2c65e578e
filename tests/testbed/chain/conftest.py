"""All tests in this folder use one lease. One `testbed reproduce` creates the lease; it is killed at many stages."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.needs import need
from tests.testbed.chain.cli_user import CliUser, Command
from tests.testbed.chain.rehearse import PACKAGES, PROGRAMS, cloud_with_nodes

KILL_AFTER = (
    r"\[1/7\] doctor",
    r"\[3/7\] slots",
    r"\[4/7\] lease",
    r"lease llm_cc: ",
    r"server node-llm-cc: BUILD",
    r"\[5/7\] configure",
    r"docker: Install",
    r"images: Build",
    r"\[6/7\] run",
    r": starts",
)
"""Each client is killed as soon as it prints one of these texts, so each is killed at a later stage."""


@pytest.fixture(scope="session")
def cli_user() -> Iterator[CliUser]:
    need(PROGRAMS, PACKAGES, root=True)
    with tempfile.TemporaryDirectory(prefix="testbed-chain-") as folder, cloud_with_nodes(Path(folder)) as made:
        yield CliUser(made)


@pytest.fixture(scope="session")
def last_client(cli_user: CliUser) -> Command:
    """Return the last client, which was not killed."""
    for output in KILL_AFTER:
        killed_client = cli_user.start_reproduce("--keep")
        killed_client.until(output)
        killed_client.kill()
    client = cli_user.start_reproduce("--keep")
    assert client.end() in (0, 1), client.output
    return client
