"""Choosing among several sites, which are fakes with nothing but a calendar."""

from dataclasses import replace
from datetime import timedelta

import pytest

from provision.errors import ForeignLease, NoCredentials, NoSuchHost, NotEnoughHosts, RequestRejected, Unreachable
from provision.leasing.journal import ActiveLease
from provision.leasing.lease import lease
from provision.leasing.request import find_lease
from provision.leasing.reserve import START_GRACE_S, choose_slots_among, site_with_earliest_slot
from provision.models import Booking, Host, Lease, Requirements
from tests.support.leasing.fake_site import HOUR, NOW, FakeSite

UNREACHABLE = Unreachable("blazar does not answer")


class FakeCalendar(FakeSite):
    """A site with one host, which has the same id at every site."""

    def __init__(self, name, booked=(), node_type="gpu", problem=None):
        super().__init__(name=name)
        self.booked, self.node_type, self.problem = booked, node_type, problem

    def hosts(self):
        if self.problem:
            raise self.problem
        return [Host("1", f"{self.name}-1", self.name, self.node_type, gpus=4)]

    def bookings(self):
        return list(self.booked)


def booking_of(hours):
    return [Booking("1", NOW - HOUR, NOW + hours * HOUR)]


def test_the_earliest_slot_of_all_sites_is_chosen(reconciler):
    sites = [FakeCalendar("CHI@UC", booking_of(9)), FakeCalendar("CHI@TACC", booking_of(2))]
    found = choose_slots_among(sites, reconciler, Requirements(3 * HOUR), limit=2)
    assert [slot.hosts[0].site for slot in found] == ["CHI@TACC", "CHI@TACC"]
    assert found[0].start == NOW + timedelta(hours=2, minutes=50)
    assert site_with_earliest_slot(sites, reconciler, Requirements(3 * HOUR), starts_now=False, watch=False) is sites[1]


def test_an_unreachable_site_is_reported_and_left_out(reconciler, messages):
    sites = [FakeCalendar("CHI@UC", problem=UNREACHABLE), FakeCalendar("CHI@TACC", booking_of(2))]
    assert choose_slots_among(sites, reconciler, Requirements(3 * HOUR))[0].hosts[0].site == "CHI@TACC"
    assert "CHI@UC: blazar does not answer" in messages


def test_if_no_site_has_a_slot_every_reason_is_reported(reconciler):
    sites = [FakeCalendar("CHI@UC", booking_of(2)), FakeCalendar("CHI@TACC", problem=UNREACHABLE)]
    with pytest.raises(NotEnoughHosts, match=r"CHI@UC: not enough nodes are free.*CHI@TACC: blazar does not answer"):
        choose_slots_among(sites, reconciler, Requirements(3 * HOUR, start=NOW))


def test_watching_all_sites_ends_with_the_first_free_node_of_any_site(reconciler, messages):
    sites = [FakeCalendar("CHI@UC", booking_of(2)), FakeCalendar("CHI@TACC", booking_of(1))]
    assert site_with_earliest_slot(sites, reconciler, Requirements(3 * HOUR), starts_now=True, watch=True) is sites[1]
    assert reconciler.clock.now() - NOW < 2 * HOUR
    assert any("searching again" in line for line in messages)


@pytest.mark.parametrize(
    ("requirements", "line"),
    [
        ({"node_type": "gpu_v10"}, "unknown node type 'gpu_v10'; similar names: gpu_v100, gpu_a100"),
        ({"gpus": 8}, "no node has at least 8 GPUs; available: gpu_a100 at CHI@UC .*; gpu_v100 at CHI@TACC"),
        ({"host_count": 2}, "2 equal nodes are requested; allowed: 1 to 1"),
    ],
)
def test_watching_all_sites_fails_at_once_if_no_site_has_the_hardware(reconciler, messages, requirements, line):
    edge = FakeCalendar("CHI@Edge", problem=RequestRejected("the reference API does not list site CHI@Edge"))
    sites = [FakeCalendar("CHI@UC", node_type="gpu_a100"), edge, FakeCalendar("CHI@TACC", node_type="gpu_v100")]
    with pytest.raises(NoSuchHost, match=line):
        site_with_earliest_slot(sites, reconciler, Requirements(3 * HOUR, **requirements), starts_now=True, watch=True)
    assert messages == []


def test_a_request_for_hardware_that_an_unreachable_site_might_have_is_not_a_user_error(reconciler):
    sites = [FakeCalendar("CHI@UC", node_type="gpu_a100"), FakeCalendar("CHI@TACC", problem=UNREACHABLE)]
    with pytest.raises(NotEnoughHosts, match=r"CHI@UC: unknown node type 'gpu'.*CHI@TACC: blazar does not answer"):
        choose_slots_among(sites, reconciler, Requirements(3 * HOUR, node_type="gpu"))


def test_watching_ends_if_the_credentials_are_rejected(reconciler):
    sites = [FakeCalendar(name, problem=NoCredentials("keystone rejects them")) for name in ("CHI@UC", "CHI@TACC")]
    with pytest.raises(NoCredentials):
        site_with_earliest_slot(sites, reconciler, Requirements(3 * HOUR), starts_now=True, watch=True)


def _add_lease_of_other_program(site, name="llm_cc", **changes):
    """Add a lease of the same name as another program makes it."""
    site.held.append(
        Lease("twin", name, "ACTIVE", NOW, NOW + 3 * HOUR, ("r",), hosts=("2",), tag="other", created="999")
    )
    site.held[-1] = replace(site.held[-1], **changes)


@pytest.mark.usefixtures("reachable")
def test_a_past_lease_of_the_same_name_does_not_prevent_a_new_one(reconciler, lease_request):
    site = FakeSite()
    _add_lease_of_other_program(site, status="TERMINATED", end=NOW - HOUR, start=NOW - 2 * HOUR)
    assert lease(site, reconciler, lease_request()).lease.id != "twin"


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize("created", ["000", "999"])
def test_of_two_leases_that_two_programs_create_under_one_name_only_the_older_is_kept(
    reconciler, lease_request, monkeypatch, created
):
    site = FakeSite()
    create = site.create_lease

    def create_at_once(*arguments):
        _add_lease_of_other_program(site, created=created)
        return create(*arguments)

    monkeypatch.setattr(site, "create_lease", create_at_once)
    if created == "999":
        assert lease(site, reconciler, lease_request()).lease.id != "twin"
        assert len(site.held) == 2
    else:
        with pytest.raises(ForeignLease, match="twin"):
            lease(site, reconciler, lease_request())
        assert [one.id for one in site.held] == ["twin"]


@pytest.mark.usefixtures("reachable")
def test_a_lease_that_another_program_creates_later_with_the_same_time_of_creation_is_seen(
    reconciler, lease_request, monkeypatch
):
    site, sleep = FakeSite(listing_delay_s=2.0), reconciler.clock.sleep

    def sleep_while_another_program_leases(seconds):
        sleep(seconds)
        if seconds == site.listing_delay_s:
            _add_lease_of_other_program(site, created=site.held[0].created, id="0")

    monkeypatch.setattr(reconciler.clock, "sleep", sleep_while_another_program_leases)
    with pytest.raises(ForeignLease, match="0"):
        lease(site, reconciler, lease_request())
    assert [one.id for one in site.held] == ["0"]


@pytest.mark.usefixtures("reachable")
def test_of_two_leases_that_this_program_created_under_one_name_the_younger_is_deleted(
    reconciler, lease_request, monkeypatch
):
    site = FakeSite()
    create = site.create_lease

    def create_twice(name, tag, slot):
        create(name, tag, slot)
        made = create(name, tag, slot)
        site.held[-1] = replace(made, tag="".join(list(tag)))
        return made

    monkeypatch.setattr(site, "create_lease", create_twice)
    kept = lease(site, reconciler, lease_request()).lease
    assert [one.id for one in site.held] == [kept.id]
    assert kept.created == "001"


def test_an_ended_lease_does_not_hide_the_active_one_of_the_same_name():
    site, record = FakeSite(), ActiveLease("llm_cc", "other", "CHI@UC", "")
    _add_lease_of_other_program(site, id="over", status="TERMINATED", created="001")
    _add_lease_of_other_program(site, id="alive", created="002")
    assert find_lease(site, record).id == "alive"


@pytest.mark.usefixtures("reachable")
def test_a_lease_may_start_some_minutes_late(reconciler, lease_request, monkeypatch):
    site = FakeSite(lease_status="PENDING")
    sleep = reconciler.clock.sleep

    def start_late(seconds):
        sleep(seconds)
        if reconciler.clock.monotonic_s() > START_GRACE_S / 2:
            site.held = [replace(one, status="ACTIVE") for one in site.held]

    monkeypatch.setattr(reconciler.clock, "sleep", start_late)
    assert lease(site, reconciler, lease_request()).lease.status == "ACTIVE"


@pytest.mark.usefixtures("reachable")
def test_a_lease_of_the_same_name_that_is_not_in_the_journal_is_rejected_before_anything_is_created(
    reconciler, lease_request
):
    site = FakeSite()
    _add_lease_of_other_program(site)
    with pytest.raises(ForeignLease, match="twin"):
        lease(site, reconciler, lease_request())
    assert [one.id for one in site.held] == ["twin"]
    assert reconciler.journal.active_lease("llm_cc") is None


@pytest.mark.usefixtures("reachable")
def test_a_lease_whose_creation_was_interrupted_is_recognized_as_the_user_s_own(reconciler, lease_request, monkeypatch):
    site = FakeSite()
    create = site.create_lease

    def create_and_interrupt(*arguments):
        create(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(site, "create_lease", create_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            lease(site, reconciler, lease_request())
    assert lease(site, reconciler, lease_request()).lease.id == site.held[0].id
    assert len(site.held) == 1


@pytest.mark.usefixtures("reachable")
def test_an_address_that_cannot_be_attached_is_replaced_by_another(reconciler, lease_request, messages, monkeypatch):
    site = FakeSite()
    rejected: list[object] = []
    attach = site.attach_address

    def reject_first(address, server):
        if not rejected:
            rejected.append(address)
            raise RequestRejected("the address is in use")
        return attach(address, server)

    monkeypatch.setattr(site, "attach_address", reject_first)
    assert lease(site, reconciler, lease_request()).machines
    assert "the address is in use; trying another address" in messages
