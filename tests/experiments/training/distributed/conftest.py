"""A warm process from which launchers and ranks start."""

import psutil
import pytest

from experiments.runners.local.warm import LAUNCHER_MODULE, RANK_MODULE
from experiments.system.warm_start import WARM_SOCKET_VARIABLE
from tests.support.processes.warm_processes import warm_process

COMPILER = "torch._dynamo"
"""A module that every rank imports, and every engine."""


@pytest.fixture(scope="session")
def warm_ranks(tmp_path_factory):
    with warm_process(tmp_path_factory.mktemp("warm"), LAUNCHER_MODULE, RANK_MODULE, COMPILER) as (process, environment):
        assert process.poll() is None
        yield process, environment[WARM_SOCKET_VARIABLE]


@pytest.fixture
def ranks_start_warm(warm_ranks, monkeypatch):
    """Make the row's processes start from the warm process; afterwards none of them is left."""
    process, socket = warm_ranks
    monkeypatch.setenv(WARM_SOCKET_VARIABLE, socket)
    yield
    assert process.poll() is None
    assert psutil.Process(process.pid).children() == []
