"""One lease for all tests of this folder: the chain is gone through once, by clients that are killed on the way."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.chain.person import Person
from tests.testbed.chain.rehearse import PACKAGES, PROGRAMS, stage
from tests.testbed.needs import need


@pytest.fixture(scope="session")
def person() -> Iterator[Person]:
    need(PROGRAMS, PACKAGES, root=True)
    with tempfile.TemporaryDirectory(prefix="testbed-chain-") as folder, stage(Path(folder)) as made:
        yield Person(made)
