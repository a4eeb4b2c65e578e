"""300 random histories of leasing; TESTBED_HISTORIES sets another number. A failing one is printed, and replays."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from provision.leasing import boot, reconciler, release
from tests.support.leasing.histories import Leasing

HISTORIES = int(os.environ.get("TESTBED_HISTORIES", "300"))
SETTINGS = settings(
    max_examples=HISTORIES,
    stateful_step_count=12,
    deadline=None,
    database=None,
    derandomize=HISTORIES == 300,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Let every server answer SSH, and the disk be fast."""
    monkeypatch.setattr(boot, "try_login", lambda login: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.timeout(0)
def test_whatever_happens_there_is_one_lease_and_nothing_costs_unsaid():
    run_state_machine_as_test(Leasing, settings=SETTINGS)


def forgets_to_look(self, active_lease, operation, find, create, outcome, **intent):
    """Stands for a find-or-create that does not look for what a lost answer may have made."""
    resource = self._retrying()(lambda: self.perform(active_lease, operation, create, **intent))
    self.journal.write("done", active_lease, operation, **outcome(resource))
    return resource


PLANTED = {
    "a lost answer is asked again": (reconciler.Reconciler, "find_or_create", forgets_to_look),
    "any account may release": (release, "verify_account", lambda *_: None),
    "what remains is not asked": (release, "remaining", lambda *_: []),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, monkeypatch):
    monkeypatch.setattr(*PLANTED[fault])
    found = settings(SETTINGS, max_examples=300, phases=[Phase.generate], derandomize=True, print_blob=False)
    with pytest.raises((AssertionError, ExceptionGroup, ValueError)):
        run_state_machine_as_test(Leasing, settings=found)
