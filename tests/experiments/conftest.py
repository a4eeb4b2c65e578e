"""Fixtures: a fake machine with chosen GPUs, whose rows get their results at once, and a webhook."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from experiments.prediction import service
from experiments.runners import targets
from provision.hardware import local
from provision.models import Gpu
from tests.support.runners import rows
from tests.support.runners.fake_predictions import Predictor, stated
from tests.support.runners.fake_runner import FakeRunner


@pytest.fixture
def machine(monkeypatch):
    """Replace this machine by one with these GPUs."""

    def set_machine(*gpus: Gpu, **facts) -> None:
        monkeypatch.setattr(local, "this_machine", lambda: rows.node(*gpus, **facts))

    monkeypatch.setattr(targets, "LocalRunner", FakeRunner)
    monkeypatch.setattr(service, "predict", Predictor(stated))
    monkeypatch.setattr(FakeRunner, "ran", [])
    set_machine()
    return set_machine


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Start a webhook on this machine; return its address, which has a password, and the list of what it received."""
    received: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"json://user:pass-word@127.0.0.1:{server.server_port}/hook", received
    server.shutdown()
    server.server_close()
