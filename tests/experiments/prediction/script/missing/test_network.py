"""Without network, a script fails within seconds and the line says so; a slow hub is waited for."""

import json
import socket

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from experiments.prediction.script.trace import ScriptFailed
from experiments.prediction.script.traced.missing.network import HubConnection
from tests.support.services.fake_hub import FakeHub

LOAD = "from transformers import {0}\n{0}.from_pretrained('made/up')\n"


@pytest.fixture
def closed_port() -> str:
    """Return the address of a port on this machine where no one listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def online(monkeypatch):
    """Turn the offline mode off that other settings of this machine turn on, and restore it after the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with FakeHub() as hub:
        hub.repos["models/made/up"] = tmp_path / "repo"
        yield hub


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "AutoConfig",
            "the configuration of 'made/up' (not in the Hugging Face cache, and the Hugging Face hub cannot",
        ),
        ("AutoModelForCausalLM", "the configuration of 'made/up' (not in the Hugging Face cache, and the Hugging Face"),
        ("AutoTokenizer", "the tokenizer of 'made/up' (the Hugging Face hub cannot be reached: "),
    ],
)
def test_a_script_fails_after_two_refused_connections(
    trace_in_new_process, online, closed_port, monkeypatch, tmp_path, capfd, name, line
):
    monkeypatch.setenv("HF_ENDPOINT", closed_port)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(ScriptFailed) as caught:
        trace_in_new_process(LOAD.format(name))
    assert str(caught.value).startswith(f"missing: {line}")
    assert "onnection refused" in str(caught.value)
    assert capfd.readouterr().err.count("Retrying in") <= 1


def test_a_repository_without_network_is_named(trace_in_new_process, online, closed_port, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", closed_port)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(ScriptFailed, match=r"missing: the files of 'made/up' on the Hugging Face hub \(Got: Connect"):
        trace_in_new_process("from huggingface_hub import snapshot_download\nsnapshot_download('made/up')\n")


def test_a_connection_that_does_not_open_in_time_turns_the_hub_off_at_once(online, monkeypatch):
    def time_out(self, request):
        assert request.extensions["timeout"]["connect"] == 6.0
        raise httpx.ConnectTimeout("")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", time_out)
    connection = HubConnection()
    with pytest.raises(OfflineModeIsEnabled, match="the Hugging Face hub cannot be reached: no connection within 6 s"):
        connection.client().get("http://127.0.0.1:9/", timeout=60)
    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("variable", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
def test_a_timeout_that_the_user_sets_is_kept(online, monkeypatch, variable):
    monkeypatch.setenv(variable, "60")
    seen = []

    def answer(self, request):
        seen.append(request.extensions["timeout"]["connect"])
        return httpx.Response(200)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
    HubConnection().client().get("http://127.0.0.1:9/", timeout=60)
    assert seen == [60]


def test_a_slow_answer_and_a_failure_after_an_answer_are_no_missing_network(online, hub, closed_port):
    connection, file = HubConnection(), f"{hub.url}/made/up/resolve/main/config.json"
    client = connection.client()
    hub.slow_s = 1.0
    with pytest.raises(httpx.ReadTimeout):
        client.get(file, timeout=0.2)
    assert client.get(file, timeout=10).json() == {"model_type": "gpt2"}
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            client.get(closed_port)
    assert not constants.HF_HUB_OFFLINE
    assert connection.unreachable_reason == ""


def test_a_script_loads_from_a_slow_hub(trace_in_new_process, online, hub, monkeypatch, tmp_path):
    hub.slow_s = 2.0
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    source = LOAD.format("AutoConfig") + "import torch\ntorch.ones(2**20, device='cuda')\n"
    (one,) = trace_in_new_process(source)
    assert one.peak_gib > 0
    assert hub.downloads["config.json"] == 1
