"""All tests in this folder use one lease. One `testbed reproduce` creates the lease; it is killed at many stages."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.needs import need
from tests.testbed.chain.cli_user import CliUser, Command
from tests.testbed.chain.rehearse import PACKAGES, PROGRAMS, stage

STRIKES = (
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
"""The last output of each client before it is killed; each client is killed later than the one before."""


@pytest.fixture(scope="session")
def cli_user() -> Iterator[CliUser]:
    need(PROGRAMS, PACKAGES, root=True)
    with tempfile.TemporaryDirectory(prefix="testbed-chain-") as folder, stage(Path(folder)) as made:
        yield CliUser(made)


@pytest.fixture(scope="session")
def last_client(cli_user: CliUser) -> Command:
    """Return the last client, which was not killed."""
    for strike in STRIKES:
        killed_client = cli_user.start_reproduce("--keep")
        killed_client.until(strike)
        killed_client.kill()
    client = cli_user.start_reproduce("--keep")
    assert client.end() in (0, 1), client.output
    return client
