from importlib.util import find_spec

import pytest

from tests.support.fake_hub import Hub

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py", "engines/*"]


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The stand-in of the hub, which the library takes for the real one, with caches of the test's own."""
    from huggingface_hub import constants, hf_api

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
        yield hub
