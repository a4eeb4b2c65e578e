"""All tests in this folder use one lease. One `testbed reproduce` creates the lease; it is killed at many stages."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.needs import need
from tests.testbed.chain.person import Command, Person
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
def person() -> Iterator[Person]:
    need(PROGRAMS, PACKAGES, root=True)
    with tempfile.TemporaryDirectory(prefix="testbed-chain-") as folder, stage(Path(folder)) as made:
        yield Person(made)


@pytest.fixture(scope="session")
def last(person: Person) -> Command:
    """Return the last client, which was not killed."""
    for strike in STRIKES:
        killed_client = person.reproduces("--keep")
        killed_client.until(strike)
        killed_client.kill()
    client = person.reproduces("--keep")
    assert client.end() in (0, 1), client.output
    return client
