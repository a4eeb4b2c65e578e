"""Extension by the site's rules and never twice, release, cost. The site is a fake with one lease."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from provision.errors import BadName, BadTime, ExtensionRejected, NotReleased, Unreachable
from provision.leasing import account
from provision.leasing.journal import Journal, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import (
    LeaseSnapshot,
    active_lease_states,
    current_end,
    extend,
    get_active_lease,
    is_leased,
    lease_snapshot,
    planned_extension,
    release,
)
from provision.leasing.request import lease_data
from provision.models import Address, Host, Lease, Server, Volume
from tests.support.leasing.fake_site import HOUR, IDENTITY, NOW, FakeClock

NAME = "llm_cc"


@dataclass
class FakeVolumeSite:
    """A site with one tagged lease, volumes, and hosts of 8 SU an hour."""

    tag: str
    lease: Lease = field(init=False)
    rejects: bool = False
    stuck: tuple[Volume, ...] = ()
    name = "CHI@UC"

    def __post_init__(self):
        self.lease = Lease("1", NAME, "ACTIVE", NOW - HOUR, NOW + 2 * HOUR, (), ("7",), self.tag)

    def user_id(self):
        return "me"

    def identity(self):
        return IDENTITY

    def leases(self):
        return [self.lease] if self.lease else []

    def delete_lease(self, lease):
        self.lease = None

    def volumes(self):
        return self.stuck

    def create_volume(self, name, tag, image_id):
        raise AssertionError("release creates nothing")

    def delete_volume(self, volume):
        """Accept the request and do nothing, as cinder sometimes does."""

    delete_server = release_address = delete_key = delete_volume

    def servers(self):
        return []

    addresses = keys = openings = servers

    def hosts(self):
        return [Host("7", "P3-GPU-007", self.name, "gpu", gpus=4, su_per_hour=8)]

    def extend_lease(self, lease, slot):
        if self.rejects:
            raise ExtensionRejected("blazar rejects")
        self.lease = replace(lease, end=slot.end)
        return self.lease


@pytest.fixture
def reconciler(tmp_path):
    return Reconciler(Journal(tmp_path, lambda: NOW), FakeClock(), lambda line: None)


@pytest.fixture
def active_lease(reconciler):
    return reconciler.journal.open_lease(NAME, "CHI@UC")


@pytest.fixture
def site(active_lease):
    return FakeVolumeSite(active_lease.tag)


class Killed(Exception):
    """Exception that represents the death of the program."""


def extend_and_kill(reconciler, site, active_lease, fatal, by=HOUR):
    """Extend with a program that dies instead of writing this event."""

    class DyingJournal(Journal):
        def write(self, event, *args, **data):
            super().write(event, *args, **data) if event != fatal else self.die()

        def die(self):
            raise Killed

    with pytest.raises(Killed):
        extend(site, replace(reconciler, journal=DyingJournal(reconciler.journal.folder)), active_lease, by)


def test_an_extension_killed_after_the_request_is_not_repeated(reconciler, site, active_lease):
    end = site.lease.end + HOUR
    extend_and_kill(reconciler, site, active_lease, "done")
    assert site.lease.end == end
    extend_lease, requests = site.extend_lease, []
    site.extend_lease = lambda *request: requests.append(request) or extend_lease(*request)
    assert extend(site, reconciler, active_lease, HOUR).end == end
    assert requests == []
    assert extend(site, reconciler, active_lease, HOUR).end == end + HOUR


def test_an_extension_killed_before_the_request_is_repeated(reconciler, site, active_lease, monkeypatch):
    end = site.lease.end + HOUR
    with monkeypatch.context() as patch:
        patch.setattr(site, "extend_lease", lambda *_: (_ for _ in ()).throw(Killed), raising=False)
        with pytest.raises(Killed):
            extend(site, reconciler, active_lease, HOUR)
    assert extend(site, reconciler, active_lease, HOUR).end == end


def test_an_interrupted_extension_is_resumed_even_if_a_new_one_would_be_rejected(reconciler, site, active_lease):
    week = timedelta(days=7)
    extend_and_kill(reconciler, site, active_lease, "done", by=week)
    assert extend(site, reconciler, active_lease, week).end == NOW + 2 * HOUR + week


@pytest.mark.parametrize("changed_by", [-HOUR, HOUR])
def test_an_interrupted_extension_is_not_resumed_if_somebody_else_changed_the_end(
    reconciler, site, active_lease, changed_by
):
    end = site.lease.end + changed_by
    extend_and_kill(reconciler, site, active_lease, "done", by=3 * HOUR)
    site.lease = replace(site.lease, end=end)
    assert extend(site, reconciler, active_lease, 3 * HOUR).end == end + 3 * HOUR


def test_an_extension_by_another_length_or_after_a_rejected_one_is_a_new_request(reconciler, site, active_lease):
    extend_and_kill(reconciler, site, active_lease, "done")
    assert extend(site, reconciler, active_lease, 2 * HOUR).end == NOW + 5 * HOUR
    site.rejects = True
    with pytest.raises(ExtensionRejected, match="blazar rejects"):
        extend(site, reconciler, active_lease, HOUR)
    site.rejects = False
    site.lease = replace(site.lease, end=NOW + 4 * HOUR)
    assert extend(site, reconciler, active_lease, HOUR).end == NOW + 5 * HOUR


@pytest.mark.parametrize("ask", [extend, planned_extension])
def test_a_lease_can_be_extended_only_in_its_last_48_hours(reconciler, site, active_lease, ask):
    site.lease = replace(site.lease, end=NOW + timedelta(hours=48, minutes=1))
    with pytest.raises(ExtensionRejected, match=r"cannot be extended before 2026-11-21 12:01 UTC"):
        ask(site, reconciler, active_lease, HOUR)
    assert site.lease.end == NOW + timedelta(hours=48, minutes=1)
    reconciler.clock.sleep(60)
    ask(site, reconciler, active_lease, HOUR)


@pytest.mark.parametrize("by", [timedelta(), timedelta(days=7, minutes=1)])
def test_a_lease_can_be_extended_by_at_most_a_week(reconciler, site, active_lease, by):
    with pytest.raises(BadTime, match=r"extension by (0m|168h1m) is not possible; allowed: more than 0m, at most 168h"):
        planned_extension(site, reconciler, active_lease, by)


def test_a_lease_that_is_over_cannot_be_extended(reconciler, site, active_lease):
    site.lease = replace(site.lease, status="TERMINATED")
    with pytest.raises(ExtensionRejected, match="llm_cc has ended; lease again"):
        extend(site, reconciler, active_lease, HOUR)


def test_the_cost_of_a_lease_counts_from_its_start_until_now_or_until_its_end(reconciler, site, active_lease):
    assert lease_snapshot(site, reconciler, active_lease).used_su == 8
    site.lease = replace(site.lease, hosts=("7", "7"))
    assert lease_snapshot(site, reconciler, active_lease).used_su == 16
    reconciler.clock.sleep(5 * 3600)
    assert lease_snapshot(site, reconciler, active_lease).used_su == 2 * 8 * 3


def test_the_cost_of_a_past_lease_is_computed_from_its_hosts_in_the_journal(reconciler, site, active_lease):
    reconciler.journal.write("done", active_lease, Operation.CREATE_LEASE, **lease_data(site.lease))
    site.lease = replace(site.lease, status="TERMINATED", hosts=(), end=NOW)
    reconciler.journal.write("done", active_lease, Operation.CREATE_LEASE, **lease_data(site.lease))
    assert lease_snapshot(site, reconciler, active_lease).used_su == 8


def test_the_cost_is_unknown_if_hosts_or_prices_are_unknown(reconciler, site, active_lease):
    site.lease = replace(site.lease, hosts=())
    assert lease_snapshot(site, reconciler, active_lease).used_su is None
    site.lease = replace(site.lease, hosts=("8",))
    assert lease_snapshot(site, reconciler, active_lease).used_su is None


def test_a_volume_that_was_not_deleted_is_named_and_the_lease_stays_active(reconciler, site, active_lease):
    site.stuck = (
        Volume("volume-1", "node", "error_deleting", active_lease.tag),
        Volume("volume-2", "theirs", "in-use"),
    )
    with pytest.raises(NotReleased, match=r"still at CHI@UC after release: volume volume-1; run the release again"):
        release(site, reconciler, active_lease)
    assert NAME in reconciler.journal.active_leases()
    site.stuck = site.stuck[1:]
    release(site, reconciler, active_lease)
    assert reconciler.journal.active_leases() == {}


@pytest.fixture
def connect_to_site(site, monkeypatch):
    """Connect to the site as a run under way does."""
    monkeypatch.setattr(account, "connect_to", lambda *_: site)
    return site


def test_the_end_of_a_lease_is_the_one_that_the_site_states(reconciler, connect_to_site, active_lease):
    assert current_end(reconciler, active_lease) == NOW + 2 * HOUR
    connect_to_site.lease = replace(connect_to_site.lease, end=NOW + 5 * HOUR)
    assert current_end(reconciler, active_lease) == NOW + 5 * HOUR


def unreachable():
    raise Unreachable("blazar does not answer")


def test_if_the_site_does_not_answer_the_end_of_a_lease_is_the_one_in_the_journal(
    reconciler, connect_to_site, active_lease
):
    for operation, hours in ((Operation.CREATE_LEASE, 2), (Operation.EXTEND_LEASE, 3), (Operation.CREATE_LEASE, 4)):
        data = lease_data(replace(connect_to_site.lease, end=NOW + hours * HOUR))
        reconciler.journal.write("done", active_lease, operation, **data)
        connect_to_site.leases = unreachable
        assert current_end(reconciler, active_lease) == NOW + hours * HOUR


@pytest.mark.parametrize("other", [replace(IDENTITY, project_id="p2"), None])
def test_a_lease_that_cannot_be_queried_counts_as_active(reconciler, connect_to_site, active_lease, other):
    assert is_leased(reconciler, active_lease)
    reconciler.journal.record_account(active_lease, IDENTITY)
    recorded = reconciler.journal.active_lease(NAME)
    connect_to_site.lease = None
    assert not is_leased(reconciler, recorded)
    if other:
        connect_to_site.identity = lambda: other
    else:
        connect_to_site.leases = unreachable
    assert is_leased(reconciler, recorded)


def test_a_lease_that_has_ended_does_not_count_as_active(reconciler, connect_to_site, active_lease):
    connect_to_site.lease = replace(connect_to_site.lease, status="TERMINATED")
    assert not is_leased(reconciler, active_lease)


def test_the_error_for_a_name_without_an_active_lease_lists_the_active_leases(reconciler):
    with pytest.raises(BadName, match="no active lease 'llm_cc'; active leases: none"):
        get_active_lease(reconciler, NAME)
    opened = [reconciler.journal.open_lease(name, "CHI@UC") for name in ("other", NAME)]
    assert get_active_lease(reconciler, NAME) == opened[1]
    with pytest.raises(BadName, match="no active lease 'x'; active leases: llm_cc, other"):
        get_active_lease(reconciler, "x")


def test_the_state_of_a_lease_contains_only_its_own_servers_and_their_addresses(reconciler, site, active_lease):
    site.servers = lambda: [Server(id, "node", "ACTIVE", tag) for id, tag in (("1", active_lease.tag), ("2", ""))]
    site.addresses = lambda: [
        Address(id, f"192.0.2.{id}", server) for id, server in (("1", "1"), ("2", "2"), ("3", ""))
    ]
    state = lease_snapshot(site, reconciler, active_lease)
    assert [server.id for server in state.servers] == ["1"]
    assert (state.ips, [host.id for host in state.hosts]) == (("192.0.2.1",), ["7"])
    assert (state.used_su, state.total_su) == (8, 3 * 8)
    site.lease = None
    gone = lease_snapshot(site, reconciler, active_lease)
    assert (gone.lease, gone.ips, gone.hosts, gone.used_su, gone.total_su) == (None, ("192.0.2.1",), (), None, None)


def test_leases_of_other_sites_are_shown_if_one_site_does_not_answer(reconciler, connect_to_site, active_lease):
    reconciler.journal.open_lease("other", "CHI@UC", replace(IDENTITY, project_id="p2"))
    (first, state), (second, problem) = active_lease_states(reconciler)
    assert isinstance(state, LeaseSnapshot)
    assert (first.name, state.lease, second.name) == (NAME, connect_to_site.lease, "other")
    assert "was created by" in str(problem)


@pytest.mark.parametrize("left_s", [0, 1])
def test_a_lease_can_be_extended_from_the_first_moment_of_its_last_48_hours(reconciler, site, active_lease, left_s):
    site.lease = replace(site.lease, end=NOW + timedelta(hours=48, seconds=left_s))
    if left_s:
        with pytest.raises(ExtensionRejected):
            planned_extension(site, reconciler, active_lease, HOUR)
        return
    week = timedelta(days=7)
    assert planned_extension(site, reconciler, active_lease, week)[1] == site.lease.end + week


def test_an_interrupted_extension_is_not_resumed_if_the_lease_already_ends_later(reconciler, site, active_lease):
    messages: list[str] = []
    reporting = replace(reconciler, report=messages.append)
    extend_and_kill(reconciler, site, active_lease, "done")
    assert planned_extension(site, reporting, active_lease, HOUR)[1] == NOW + 3 * HOUR
    assert messages == ["resuming the interrupted extension of llm_cc by 1h"]
    site.lease = replace(site.lease, end=NOW + 4 * HOUR)
    assert planned_extension(site, reporting, active_lease, HOUR)[1] == NOW + 5 * HOUR
