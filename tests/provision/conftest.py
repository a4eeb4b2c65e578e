"""Lease requests, and a reconciler whose waits take no time."""

from pathlib import Path

import pytest

from provision.leasing import boot
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest
from provision.models import Requirements
from provision.ssh.login import KeyPair
from tests.support.leasing.fake_site import HOUR, FakeClock


@pytest.fixture
def messages():
    return []


@pytest.fixture
def reconciler(messages, tmp_path):
    return Reconciler(Journal(tmp_path), FakeClock(), messages.append)


@pytest.fixture
def lease_request():
    """Return a function that requests any node for three hours from now; its arguments are further requirements."""
    return lambda **requirements: LeaseRequest(
        "llm_cc", "node", Requirements(3 * HOUR, **requirements), KeyPair(Path("key"), "ssh-ed25519 A"), True
    )


@pytest.fixture
def reachable(monkeypatch):
    """Let every server answer SSH, for tests that are not about SSH."""
    monkeypatch.setattr(boot, "try_login", lambda login: None)
