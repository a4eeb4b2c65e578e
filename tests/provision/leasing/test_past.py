"""The cost of past leases, computed from the journal: deleted, extended and ended ones, and some without a price."""

from datetime import UTC, datetime, timedelta

import pytest

from provision.leasing.journal import Journal, Operation
from provision.leasing.past import past_leases, total_cost_in_words

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class DatedJournal:
    """A journal whose entries are dated by ``at``."""

    def __init__(self, folder):
        self.at = NOW
        self.journal = Journal(folder, lambda: self.at)

    def lease(self, id, name="llm_cc", hours=3, cost_su=48.0, start=None):
        active_lease = self.journal.open_lease(name, "CHI@UC")
        begin = start or self.at
        slot = {"start": begin.isoformat(), "end": (begin + hours * HOUR).isoformat()}
        self.journal.write("intent", active_lease, Operation.CREATE_LEASE, cost_su=cost_su, **slot)
        self.journal.write("done", active_lease, Operation.CREATE_LEASE, id=id, **slot)
        return active_lease, slot

    def costs(self, now):
        return {one.id: one.used_su for one in past_leases(self.journal.entries(), now)}


@pytest.fixture
def dated_journal(tmp_path):
    return DatedJournal(tmp_path)


def test_a_lease_costs_until_it_is_deleted_or_ends_or_until_now(dated_journal):
    active_lease, _ = dated_journal.lease("1")
    assert dated_journal.costs(NOW + HOUR) == {"1": 16}
    assert dated_journal.costs(NOW + 9 * HOUR) == {"1": 48}
    dated_journal.at += 2 * HOUR
    dated_journal.journal.write("done", active_lease, Operation.DELETE_LEASE, id="1")
    dated_journal.journal.write("closed", active_lease)
    assert dated_journal.costs(NOW + 9 * HOUR) == {"1": 32}


def test_a_lease_that_has_not_begun_costs_nothing(dated_journal):
    dated_journal.lease("1")
    assert dated_journal.costs(NOW - HOUR) == {"1": 0}


@pytest.mark.parametrize(("start", "before"), [(NOW - timedelta(seconds=40), 40.0), (NOW, 0.0), (NOW + HOUR, 0.0)])
def test_time_before_its_request_is_counted_for_a_lease_that_started_before_the_request(dated_journal, start, before):
    dated_journal.lease("1", start=start)
    (lease,) = past_leases(dated_journal.journal.entries(), NOW + HOUR)
    assert lease.time_before_request.total_seconds() == before


def test_the_extension_of_a_lease_has_the_price_of_the_lease(dated_journal):
    active_lease, slot = dated_journal.lease("1")
    longer = {**slot, "end": (NOW + 5 * HOUR).isoformat()}
    dated_journal.journal.write("done", active_lease, Operation.EXTEND_LEASE, id="1", **longer)
    assert dated_journal.costs(NOW + 9 * HOUR) == {"1": 80}


def test_the_costs_of_several_leases_are_added_up_and_leases_of_unknown_price_are_counted(dated_journal):
    dated_journal.lease("1")
    dated_journal.lease("2", "other", cost_su=None)
    dated_journal.lease("3", "third", hours=1, cost_su=16.0)
    leases = past_leases(dated_journal.journal.entries(), NOW + 9 * HOUR)
    assert total_cost_in_words(leases) == "3 leases: 64.0 service units, and 1 of unknown price"


def test_leases_are_sorted_by_start_and_a_deletion_after_the_end_changes_nothing(dated_journal):
    dated_journal.at = NOW + HOUR
    late, _ = dated_journal.lease("1", "late")
    dated_journal.at = NOW
    dated_journal.lease("2", "early")
    dated_journal.at = NOW + 9 * HOUR
    dated_journal.journal.write("done", late, Operation.DELETE_LEASE, id="1")
    dated_journal.journal.write("done", late, Operation.DELETE_LEASE, id="unknown")
    found = past_leases(dated_journal.journal.entries(), NOW + 9 * HOUR)
    assert [(one.name, one.end - NOW) for one in found] == [("early", 3 * HOUR), ("late", 4 * HOUR)]
    assert total_cost_in_words(found) == "2 leases: 96.0 service units"


def test_an_unfinished_deletion_does_not_end_a_lease(dated_journal):
    active_lease, _ = dated_journal.lease("1")
    dated_journal.at += HOUR
    dated_journal.journal.write("intent", active_lease, Operation.DELETE_LEASE, id="1")
    assert dated_journal.costs(NOW + 2 * HOUR) == {"1": 32}
