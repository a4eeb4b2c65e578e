"""The rules of the search for time slots, one by one; test_search_oracle.py compares them with a simple search."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from provision.availability.search import earliest_slots
from provision.errors import BadTime, NoSuchHost
from provision.models import DailyWindow, Host, Requirements
from tests.support.leasing.calendars import HOUR, MINUTE, MONDAY, a100, at, booked, gigaio

ONE, TWO = a100("p3-01"), a100("p3-02")
HELSINKI = ZoneInfo("Europe/Helsinki")
THREE_HOURS = 3 * HOUR


def slot_starts(hosts, bookings, requirements, limit=1):
    return [slot.start for slot in earliest_slots(hosts, bookings, requirements, MONDAY, limit)]


@pytest.mark.parametrize(
    ("length", "start"),
    [(THREE_HOURS, at(0, 50)), (2 * HOUR + 50 * MINUTE, at(0)), (2 * HOUR, at(0, 50)), (20 * MINUTE, at(0, 30))],
)
def test_a_slot_ends_ten_minutes_before_the_hour(length, start):
    slot = earliest_slots([ONE], [], Requirements(length), MONDAY)[0]
    assert (slot.start, slot.end) == (start, start + length)
    assert slot.end.minute == 50


def test_no_other_start_than_a_requested_one_is_offered():
    bookings = [booked(ONE, at(12), at(13))]
    assert slot_starts([ONE], bookings, Requirements(THREE_HOURS, start=at(7, 7)), limit=5) == [at(7, 7)]
    assert slot_starts([ONE], bookings, Requirements(THREE_HOURS, start=at(11))) == []


@pytest.mark.parametrize(
    ("start", "free"), [(at(13, 10), True), (at(13, 9), False), (at(8, 50), True), (at(8, 51), False)]
)
def test_ten_minutes_of_cleaning_stay_free_after_a_lease_and_before_the_next(start, free):
    bookings = [booked(ONE, at(12), at(13))]
    assert slot_starts([ONE], bookings, Requirements(THREE_HOURS, start=start)) == [start] * free


def test_a_gap_just_long_enough_for_slot_and_cleaning_is_found():
    bookings = [booked(ONE, at(-5), at(0, 40)), booked(ONE, at(4), at(90 * 24))]
    assert slot_starts([ONE], bookings, Requirements(THREE_HOURS)) == [at(0, 50)]


def test_the_minutes_in_which_a_booking_begins_and_ends_are_booked_completely():
    half = timedelta(seconds=30)
    bookings = [booked(ONE, at(0), at(1, 40) + half), booked(ONE, at(4) - half, at(5))]
    assert slot_starts([ONE], bookings, Requirements(HOUR)) == [at(5, 50)]


def test_bookings_may_overlap_and_come_in_any_order():
    bookings = [booked(ONE, at(4), at(5)), booked(ONE, at(1), at(2)), booked(ONE, at(0), at(8))]
    assert slot_starts([ONE], bookings, Requirements(HOUR)) == [at(8, 50)]


def test_seven_days_is_the_longest_slot():
    assert slot_starts([ONE], [], Requirements(timedelta(days=7))) == [at(0, 50)]
    with pytest.raises(
        BadTime, match=r"^length 168h1m is not possible; allowed: whole minutes, more than 0m, at most 168h$"
    ):
        slot_starts([ONE], [], Requirements(timedelta(days=7, minutes=1)))


@pytest.mark.parametrize("length", [timedelta(), -HOUR, timedelta(seconds=90)])
def test_a_length_that_is_not_a_positive_number_of_whole_minutes_is_rejected(length):
    with pytest.raises(BadTime, match="more than 0m"):
        slot_starts([ONE], [], Requirements(length))


def test_a_start_in_the_past_is_rejected_but_not_in_the_current_minute():
    now = MONDAY + timedelta(seconds=30)
    assert earliest_slots([ONE], [], Requirements(HOUR, start=MONDAY), now)[0].start == MONDAY
    message = r"^start 2026-11-22 23:59 UTC is in the past; allowed: 2026-11-23 00:00 UTC or later$"
    with pytest.raises(BadTime, match=message):
        earliest_slots([ONE], [], Requirements(HOUR, start=MONDAY - MINUTE), now)


@pytest.mark.parametrize("field", ["start", "not_before"])
def test_a_time_without_a_zone_is_rejected(field):
    without_zone: dict[str, Any] = {field: datetime(2026, 11, 23, 14)}
    with pytest.raises(BadTime, match="time '2026-11-23 14:00' has no time zone; allowed: '2026-11-23 14:00Z'"):
        slot_starts([ONE], [], replace(Requirements(HOUR), **without_zone))


def test_a_search_begins_at_the_next_minute_or_the_requested_time():
    now = at(0, 50) + timedelta(seconds=1)
    assert earliest_slots([ONE], [], Requirements(THREE_HOURS), now)[0].start == at(1, 50)
    assert slot_starts([ONE], [], Requirements(THREE_HOURS, not_before=at(9))) == [at(9, 50)]
    assert slot_starts([ONE], [], Requirements(THREE_HOURS, not_before=at(-9))) == [at(0, 50)]


def test_nothing_is_found_further_ahead_than_sixty_days():
    assert slot_starts([ONE], [booked(ONE, MONDAY, at(0, day=59))], Requirements(HOUR)) == [at(0, 50, day=59)]
    assert slot_starts([ONE], [booked(ONE, MONDAY, at(2, day=60))], Requirements(HOUR)) == []


def test_a_slot_lies_within_the_local_daily_window():
    nine_to_five = Requirements(THREE_HOURS, hours=DailyWindow(9 * 60, 17 * 60, HELSINKI))
    found = [slot.start.astimezone(HELSINKI) for slot in earliest_slots([ONE], [], nine_to_five, MONDAY, 4)]
    assert [f"{start:%d %H:%M}" for start in found] == ["23 09:50", "23 12:50", "24 09:50", "24 12:50"]


def test_the_daily_window_follows_clock_changes():
    before = datetime(2026, 10, 24, tzinfo=UTC)
    requirements = Requirements(7 * HOUR, hours=DailyWindow(9 * 60, 17 * 60, HELSINKI))
    found = [slot.start for slot in earliest_slots([ONE], [], requirements, before, 2)]
    assert [f"{start:%d %H:%M}" for start in found] == ["24 06:50", "25 07:50"]


def test_a_slot_may_be_longer_than_the_daily_window_by_the_hour_that_a_clock_change_adds():
    before = datetime(2026, 10, 20, tzinfo=UTC)
    requirements = Requirements(6 * HOUR, hours=DailyWindow(0, 6 * 60, HELSINKI))
    assert [slot.start for slot in earliest_slots([ONE], [], requirements, before)] == [
        datetime(2026, 10, 24, 21, 50, tzinfo=UTC)
    ]


def test_the_daily_window_may_cross_midnight():
    found = slot_starts([ONE], [], Requirements(7 * HOUR, hours=DailyWindow(22 * 60, 6 * 60, HELSINKI)))
    assert [f"{start.astimezone(HELSINKI):%d %H:%M}" for start in found] == ["23 22:50"]


def test_a_given_start_outside_the_daily_window_is_not_offered():
    assert slot_starts([ONE], [], Requirements(HOUR, start=at(20), hours=DailyWindow(9 * 60, 17 * 60, HELSINKI))) == []


def test_a_slot_longer_than_the_daily_window_is_rejected():
    with pytest.raises(BadTime, match=r"^length 9h is longer than the daily window; allowed: at most 8h$"):
        slot_starts([ONE], [], Requirements(9 * HOUR, hours=DailyWindow(9 * 60, 17 * 60, HELSINKI)))


def test_a_node_without_a_gpu_is_not_offered_for_its_node_type():
    hosts = [gigaio("gigaio-01", gpus=0), gigaio("gigaio-02")]
    slots = earliest_slots(hosts, [], Requirements(HOUR, node_type="compute_gigaio"), MONDAY)
    assert {host.name for slot in slots for host in slot.hosts} == {"gigaio-02"}


def test_nodes_and_flavors_of_any_site_are_found_by_their_hardware():
    h100: dict[str, Any] = {"gpu_model": "NVIDIA H100 SXM5", "gpu_memory_gib": 94.0, "interconnect": "NVLink"}
    node = Host("h1", "h1", "CHI@TACC", "gpu_h100", gpus=4, **h100)
    places = [Host(f"f{n}", f"f{n}", "KVM@TACC", "g1.h100.pci.1", gpus=1, is_flavor=True, **h100) for n in (1, 2)]
    hosts = [ONE, node, *places]
    found = earliest_slots(hosts, [], Requirements(HOUR, gpu_model="h100", interconnect="nvlink"), MONDAY, 2)
    assert [slot.hosts for slot in found] == [(node,), (places[0],)]
    assert earliest_slots(hosts, [], Requirements(HOUR, gpu_memory_gib=90), MONDAY)[0].hosts == (node,)
    assert earliest_slots(hosts, [], Requirements(HOUR, gpu_model="H100", gpus=4), MONDAY)[0].hosts == (node,)
    two_nodes = Requirements(HOUR, node_type="g1.h100.pci.1", host_count=2)
    assert earliest_slots(hosts, [], two_nodes, MONDAY)[0].hosts == tuple(places)


def test_a_gpu_model_is_matched_by_whole_words():
    hosts = [a100("a", gpu_model="A100-PCIE-40GB"), a100("b", gpu_model="NVIDIA A10", node_type="gpu_a10")]
    assert earliest_slots(hosts, [], Requirements(HOUR, gpu_model="A10"), MONDAY)[0].hosts[0].name == "b"
    assert earliest_slots(hosts, [], Requirements(HOUR, gpu_model="a100 40gb"), MONDAY)[0].hosts[0].name == "a"


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            Requirements(HOUR, node_type="gpu_a100"),
            "unknown node type 'gpu_a100'; similar names: gpu_a100_pcie, compute_gigaio",
        ),
        (Requirements(HOUR, node="p3-1"), "unknown node 'p3-1'; similar names: p3-01, gigaio-01"),
        (Requirements(HOUR, gpu_model="A10"), "unknown GPU 'A10'; similar names: NVIDIA A100"),
        (
            Requirements(HOUR, node_type="compute_gigaio", gpus=4, gpu_memory_gib=80),
            "no node has at least 4 GPUs of at least 80 GiB; available: compute_gigaio at CHI@UC with no GPU",
        ),
        (
            Requirements(HOUR, interconnect="nvlink"),
            "no node has at least 1 GPU nvlink; available: compute_gigaio at CHI@UC with no GPU; "
            "gpu_a100_pcie at CHI@UC with 4 x NVIDIA A100 80 GiB PCIe",
        ),
        (
            Requirements(HOUR, host_count=2),
            "2 equal nodes are requested; allowed: 1 to 1 (gpu_a100_pcie at CHI@UC with 4 x NVIDIA A100 80 GiB PCIe)",
        ),
    ],
)
def test_the_error_for_unknown_hardware_lists_similar_names(requirements, message):
    with pytest.raises(NoSuchHost) as error:
        earliest_slots([ONE, gigaio("gigaio-01", gpus=0)], [], requirements, MONDAY)
    assert str(error.value) == message


@pytest.mark.parametrize("count", [0, -1])
def test_a_request_for_less_than_one_node_is_rejected(count):
    with pytest.raises(NoSuchHost, match="allowed: 1 to 1"):
        earliest_slots([ONE], [], Requirements(HOUR, host_count=count), MONDAY)


def test_the_nodes_of_a_slot_are_free_at_the_same_time_and_have_equal_hardware():
    elsewhere, other = a100("uc-other", site="CHI@TACC"), a100("p3-03", gpu_model="NVIDIA A30")
    bookings = [booked(ONE, at(0), at(5)), booked(TWO, at(8), at(30))]
    slot = earliest_slots([elsewhere, other, TWO, ONE], bookings, Requirements(HOUR, host_count=2), MONDAY)[0]
    assert (slot.hosts, slot.start) == ((ONE, TWO), at(5, 50))
    slot = earliest_slots([elsewhere, other, ONE, TWO], bookings, Requirements(THREE_HOURS, host_count=2), MONDAY)[0]
    assert slot.start == at(30, 50)


def test_the_cost_of_a_slot_is_that_of_all_its_hosts_for_its_whole_length():
    assert earliest_slots([ONE, TWO], [], Requirements(90 * MINUTE, host_count=2), MONDAY)[0].cost_su == 2 * 16 * 1.5
    assert earliest_slots([a100("p3-09", su_per_hour=None)], [], Requirements(HOUR), MONDAY)[0].cost_su is None


def test_simultaneous_slots_are_sorted_by_cost_with_unknown_costs_last():
    hosts = [Host("a", "a", "CHI@UC", "gpu_v100", gpus=1), a100("b"), gigaio("c", su_per_hour=0.0)]
    assert [slot.hosts[0].name for slot in earliest_slots(hosts, [], Requirements(HOUR), MONDAY, 3)] == ["c", "b", "a"]


def test_several_offered_slots_of_equal_nodes_follow_one_another():
    bookings = [booked(gigaio("g"), MONDAY, at(2))]
    slots = earliest_slots([ONE, TWO, gigaio("g")], bookings, Requirements(THREE_HOURS), MONDAY, 4)
    assert [(slot.hosts[0].name, slot.start) for slot in slots] == [
        ("p3-01", at(0, 50)),
        ("g", at(2, 50)),
        ("p3-01", at(3, 50)),
        ("g", at(5, 50)),
    ]


def test_a_gpu_model_matches_only_with_every_requested_word():
    hosts = [a100("a", gpu_model="NVIDIA A100-PCIE-40GB")]
    assert earliest_slots(hosts, [], Requirements(HOUR, gpu_model="NVIDIA A100"), MONDAY)
    with pytest.raises(NoSuchHost):
        earliest_slots(hosts, [], Requirements(HOUR, gpu_model="NVIDIA H100"), MONDAY)
