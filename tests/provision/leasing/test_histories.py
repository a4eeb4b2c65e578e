"""Random sequences of leasing commands and faults: 300, or TESTBED_HISTORIES. A sequence that fails is printed."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.leasing.faults import INJECTED, without_delays
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
def fast_waits(monkeypatch):
    without_delays(monkeypatch)


@pytest.mark.timeout(0)
def test_in_random_sequences_of_events_there_is_at_most_one_lease_and_every_cost_is_reported():
    run_state_machine_as_test(Leasing, settings=SETTINGS)


@pytest.mark.parametrize("fault", list(INJECTED))
@pytest.mark.timeout(900)
def test_the_random_sequences_of_events_find_a_planted_fault(fault, monkeypatch):
    monkeypatch.setattr(*INJECTED[fault])
    found = settings(
        SETTINGS,
        max_examples=2000,
        phases=[Phase.generate],
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, ExceptionGroup, ValueError)):
        run_state_machine_as_test(Leasing, settings=found)
