"""Orders, and a desk whose waits take no time."""

from pathlib import Path

import pytest

from provision.leasing import boot
from provision.leasing.ledger import Ledger
from provision.leasing.order import Order
from provision.leasing.reconciler import Desk
from provision.models import Wish
from provision.ssh.login import KeyPair
from tests.support.fake_site import HOUR, FakeClock


@pytest.fixture
def said():
    return []


@pytest.fixture
def desk(said, tmp_path):
    return Desk(Ledger(tmp_path), FakeClock(), said.append)


@pytest.fixture
def order():
    """An order of three hours from now on, of any node; any wish of another kind as arguments."""
    return lambda **wish: Order("llm_cc", "node", Wish(3 * HOUR, **wish), KeyPair(Path("key"), "ssh-ed25519 A"), True)


@pytest.fixture
def reachable(monkeypatch):
    """Where SSH is not what a test is about: every server answers."""
    monkeypatch.setattr(boot, "answers", lambda *_: True)
