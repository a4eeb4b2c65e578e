"""A fake machine with any GPUs, and rows that get their results at once."""

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

    def be(*gpus: Gpu, **facts) -> None:
        monkeypatch.setattr(local, "this_machine", lambda: rows.node(*gpus, **facts))

    monkeypatch.setattr(targets, "LocalRunner", FakeRunner)
    monkeypatch.setattr(service, "predict", Predictor(stated))
    monkeypatch.setattr(FakeRunner, "ran", [])
    be()
    return be
