"""A fake hub, and a warm process from which launchers and ranks start."""

from importlib.util import find_spec

import psutil
import pytest

from experiments.runners.local.warm import ENGINE_MODULE, LAUNCHER_MODULE, RANK_MODULE
from experiments.system.warm_start import RANK_SOCKET_VARIABLE
from tests.support.processes.warm_processes import warm_process
from tests.support.services.fake_hub import FakeHub

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py", "engines/*"]


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A fake hub that the hub library connects to, with separate caches for the test."""
    from huggingface_hub import constants, hf_api

    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture(scope="session")
def warm_ranks(tmp_path_factory):
    modules = (ENGINE_MODULE.format("litgpt_trainer"), RANK_MODULE, LAUNCHER_MODULE)
    with warm_process(tmp_path_factory.mktemp("warm"), *modules) as (process, environment):
        assert process.poll() is None
        yield process, environment[RANK_SOCKET_VARIABLE]


@pytest.fixture
def ranks_start_warm(warm_ranks, monkeypatch):
    """Make the row's processes start from the warm process; afterwards none of them is left."""
    process, socket = warm_ranks
    monkeypatch.setenv(RANK_SOCKET_VARIABLE, socket)
    yield
    assert process.poll() is None
    assert psutil.Process(process.pid).children() == []
