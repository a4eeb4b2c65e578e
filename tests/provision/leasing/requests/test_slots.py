"""The choice of time slots and hosts, and the start of a lease. The sites are fakes with a calendar."""

from dataclasses import replace
from datetime import timedelta

import pytest

from provision.errors import LeaseFailed, LeaseGone, LeaseMismatch, NoSuchHost, NotEnoughHosts
from provision.leasing.journal import Operation
from provision.leasing.lease import lease
from provision.leasing.request import LeaseTask
from provision.leasing.reserve import (
    bookings_among,
    choose_slots,
    choose_slots_among,
    move_to_other_hosts,
    reserve,
    site_with_earliest_slot,
    wait_for_start,
)
from provision.models import Booking, Requirements
from tests.support.leasing.fake_site import HOUR, NOW, FakeSite, hosts_of

THREE_HOURS = Requirements(3 * HOUR)


class FakeCalendar(FakeSite):
    """A site with these bookings, each as id of the host, begin and end in hours from now."""

    def __init__(self, number=2, booked=(), **host):
        super().__init__(hosts_of(number, **host), name=host.get("site", "CHI@UC"))
        self.booked = [Booking(id, NOW + begin * HOUR, NOW + end * HOUR) for id, begin, end in booked]

    def bookings(self):
        return [*super().bookings(), *self.booked]


@pytest.fixture
def task(reconciler, lease_request):
    """Begin a task at a site."""

    def begin(site, **requirements):
        opened = reconciler.journal.open_lease("llm_cc", site.name)
        return LeaseTask(site, reconciler, lease_request(**requirements), opened)

    return begin


def test_a_slot_begins_now_if_requested_and_otherwise_so_that_it_ends_at_minute_50(reconciler):
    site = FakeCalendar()
    assert choose_slots(site, reconciler, THREE_HOURS, starts_now=True)[0].start == NOW
    assert choose_slots(site, reconciler, THREE_HOURS)[0].start == NOW + timedelta(minutes=50)
    assert len(choose_slots(site, reconciler, THREE_HOURS)) == 1
    assert [slot.start for slot in choose_slots(site, reconciler, THREE_HOURS, limit=2)] == [
        NOW + timedelta(minutes=50),
        NOW + timedelta(hours=3, minutes=50),
    ]


def test_excluded_hosts_are_not_chosen(reconciler):
    (slot,) = choose_slots(FakeCalendar(), reconciler, THREE_HOURS, starts_now=True, excluded_hosts=("1",))
    assert [host.id for host in slot.hosts] == ["2"]


def test_if_no_slot_is_free_at_the_requested_start_the_earliest_free_slot_is_named(reconciler):
    site = FakeCalendar(1, [("1", 0, 5)])
    later = replace(THREE_HOURS, start=NOW + 2 * HOUR)
    with pytest.raises(
        NotEnoughHosts,
        match=r"^not enough nodes are free at 2026-11-21 14:00 UTC; the earliest: node-1 .*, 2026-11-21 17:50 UTC to ",
    ):
        choose_slots(site, reconciler, later)
    with pytest.raises(NotEnoughHosts, match="nodes are free at 2026-11-21 12:00 UTC; the earliest: "):
        choose_slots(site, reconciler, THREE_HOURS, starts_now=True)
    with pytest.raises(NotEnoughHosts, match=r"^not enough nodes are free; no time slot in the next 60 days$"):
        choose_slots(FakeCalendar(1, [("1", 0, 90 * 24)]), reconciler, THREE_HOURS)


def test_slots_of_several_sites_are_sorted_by_start_and_limited_in_number(reconciler, messages):
    sites = [FakeCalendar(1, [("1", 0, hours)], site=name) for name, hours in (("CHI@UC", 5), ("CHI@TACC", 1))]
    found = choose_slots_among(sites, reconciler, THREE_HOURS, limit=3)
    assert [slot.hosts[0].site for slot in found] == ["CHI@TACC", "CHI@TACC", "CHI@UC"]
    assert len(choose_slots_among(sites, reconciler, THREE_HOURS)) == 1
    assert choose_slots_among(sites[:1], reconciler, THREE_HOURS)[0].hosts[0].site == "CHI@UC"
    assert messages == []


def test_no_free_slot_is_an_error_unless_the_option_watch_is_given(reconciler):
    sites = [FakeCalendar(1, [("1", 0, 5)], site=name) for name in ("CHI@UC", "CHI@TACC")]
    with pytest.raises(NotEnoughHosts, match=r"CHI@UC: not enough.*CHI@TACC: not enough"):
        site_with_earliest_slot(sites, reconciler, THREE_HOURS, starts_now=True, watch=False)
    only = sites[:1]
    assert site_with_earliest_slot(only, reconciler, THREE_HOURS, starts_now=True, watch=False) is only[0]


def test_bookings_are_those_of_matching_hosts_that_have_not_ended(reconciler):
    sites = [
        FakeCalendar(2, [("2", 3, 4), ("1", -2, 0), ("1", -1, 1), ("9", 0, 1)]),
        FakeCalendar(1, [("1", 2, 3)], site="CHI@TACC"),
        FakeCalendar(1, [("1", 0, 9)], site="KVM@TACC", gpus=0),
    ]
    found = bookings_among(sites, reconciler, THREE_HOURS)
    assert [(one.host.site, one.host.id, (one.start - NOW) / HOUR, (one.end - NOW) / HOUR) for one in found] == [
        ("CHI@UC", "1", -1, 1),
        ("CHI@TACC", "1", 2, 3),
        ("CHI@UC", "2", 3, 4),
    ]
    with pytest.raises(NoSuchHost, match="no node has at least 8 GPUs"):
        bookings_among(sites, reconciler, replace(THREE_HOURS, gpus=8))


def test_watching_a_site_ends_with_the_first_free_slot(task, messages, reconciler):
    site = FakeCalendar(1, [("1", 0, 1)])
    made = reserve(task(site), watch=True)
    assert timedelta(minutes=70) <= made.start - NOW < timedelta(minutes=72)
    assert messages[0].endswith("; searching again every 2 minutes")
    assert (reconciler.clock.now() - NOW).total_seconds() == 70 * 60


def test_a_lease_needs_a_slot_that_is_free_now_unless_the_option_watch_is_given(task):
    with pytest.raises(NotEnoughHosts, match="not enough nodes are free"):
        reserve(task(FakeCalendar(1, [("1", 0, 1)])))


def test_a_lease_that_somebody_deleted_is_not_created_again(task, reconciler):
    site = FakeCalendar()
    begun = task(site)
    reconciler.journal.write("done", begun.initial_record, Operation.CREATE_LEASE, id="gone", start="", end="")
    with pytest.raises(
        LeaseGone, match="lease llm_cc no longer exists: somebody else deleted it, or it has ended; release it here"
    ):
        reserve(begun)
    assert site.held == []


@pytest.mark.parametrize("kind", ["intents", "outcomes"])
def test_a_command_that_has_begun_to_lease_does_not_reject_another_lease_of_the_same_name(task, reconciler, kind):
    """A task that has begun keeps the older of two leases of its name."""
    site = FakeCalendar(3)
    begun = task(site)
    event = "intent" if kind == "intents" else "done"
    reconciler.journal.write(event, begun.initial_record, Operation.UPLOAD_KEY, id="1")
    site.create_lease("llm_cc", "other", choose_slots(site, reconciler, THREE_HOURS, starts_now=True)[0])
    site.held[0] = replace(site.held[0], created="999")
    assert reserve(begun).tag == begun.initial_record.tag


@pytest.mark.parametrize(
    ("requirements", "fits"), [({}, True), ({"gpus": 4}, True), ({"host_count": 2}, False), ({"gpus": 8}, False)]
)
def test_an_existing_lease_is_returned_if_it_satisfies_the_request_and_otherwise_rejected(
    task, reconciler, lease_request, requirements, fits
):
    begun = task(FakeCalendar())
    made = reserve(begun)
    again = replace(begun, lease_request=lease_request(**requirements))
    if fits:
        assert reserve(again) == made
        assert reconciler.journal.entries()[-1].event == "done"
        return
    with pytest.raises(LeaseMismatch, match=r"lease llm_cc is active with 1 x .*, which does not meet the request"):
        reserve(again)


def test_a_lease_whose_hosts_the_site_does_not_list_is_returned(task, lease_request):
    begun = task(FakeCalendar())
    made = reserve(begun)
    begun.site.machines = []
    assert reserve(replace(begun, lease_request=lease_request(host_count=2))) == made


def start_after(task, site, made, minutes):
    """Let the lease start that many minutes after its start time."""
    sleep = task.reconciler.clock.sleep

    def start_late(seconds):
        sleep(seconds)
        if task.reconciler.clock.now() >= made.start + timedelta(minutes=minutes):
            site.held = [replace(one, status="ACTIVE") for one in site.held]

    task.reconciler.clock.sleep = start_late


@pytest.mark.parametrize("begins", [0, 2])
@pytest.mark.parametrize(("minutes", "starts"), [(15, True), (15.25, False)])
def test_a_lease_may_start_a_quarter_of_an_hour_late(task, begins, minutes, starts):
    site = FakeSite(lease_status="PENDING")
    begun = task(site)
    made = replace(reserve(begun), start=NOW + begins * HOUR)
    site.held = [made]
    start_after(begun, site, made, minutes)
    if starts:
        assert wait_for_start(begun, made).status == "ACTIVE"
        return
    with pytest.raises(LeaseFailed, match="did not start within 15 minutes of its start time"):
        wait_for_start(begun, made)


@pytest.mark.parametrize(("fault", "why"), [("", "is TERMINATED; release"), ("no power", "is TERMINATED (no power);")])
def test_waiting_for_a_lease_that_ends_before_it_starts_is_an_error(task, fault, why):
    site = FakeSite(lease_status="TERMINATED", fault=fault)
    begun = task(site)
    with pytest.raises(LeaseFailed) as failed:
        wait_for_start(begun, reserve(begun))
    assert why in str(failed.value)


def moved(task, site, **changes):
    """Lease one host of the site, change the lease, and move it; return the ids of the lease's hosts."""
    begun = task(site)
    made = reserve(begun)
    site.held = [replace(made, **changes)]
    return move_to_other_hosts(begun, made).hosts


@pytest.mark.parametrize(
    ("site", "changes", "hosts"),
    [
        (FakeCalendar(2), {}, ("2",)),
        (FakeCalendar(3, [("2", 1, 2)]), {}, ("3",)),
        (FakeCalendar(2, [("2", 1, 2)]), {}, ("1",)),
        (FakeCalendar(1), {}, ("1",)),
        (FakeCalendar(2, is_flavor=True), {}, ("1",)),
        (FakeCalendar(2), {"end": NOW + timedelta(minutes=1)}, ("1",)),
        (FakeCalendar(2), {"end": NOW + timedelta(minutes=2)}, ("2",)),
    ],
)
def test_a_lease_moves_to_hosts_that_are_free_until_its_end(task, site, changes, hosts):
    assert moved(task, site, **changes) == hosts


def test_a_moved_lease_begins_in_the_next_minute_and_keeps_its_end(task, reconciler, messages):
    site = FakeCalendar(2)
    reconciler.clock.sleep(90)
    moved(task, site)
    begin = NOW + timedelta(minutes=2)
    assert (site.held[0].start, site.held[0].end) == (begin, begin + 3 * HOUR)
    assert "enough other nodes of the same hardware are free; moving the lease to them" in messages


def test_a_lease_that_has_ended_is_not_moved(task):
    with pytest.raises(LeaseGone):
        moved(task, FakeCalendar(2), status="TERMINATED")


@pytest.mark.usefixtures("reachable")
def test_other_hardware_does_not_replace_a_failed_node(reconciler, lease_request):
    site = FakeSite([*hosts_of(1), replace(hosts_of(2)[1], gpus=8)], broken={"1"})
    site.before = lambda operation: site.broken.clear() if operation == "delete server" else None
    assert lease(site, reconciler, lease_request()).lease.hosts == ("1",)
