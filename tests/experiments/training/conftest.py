from importlib.util import find_spec

import pytest

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
