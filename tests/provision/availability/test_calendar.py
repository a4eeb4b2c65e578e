"""The calendar of reservations, drawn as text."""

from datetime import UTC, datetime
from io import StringIO
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from provision.availability.calendar import draw_calendar
from provision.models import TimeSlot
from tests.support.leasing.calendars import MONDAY, a100, at, booked, gigaio

NODE = a100("p3-01")
HELSINKI, UTC_ZONE = ZoneInfo("Europe/Helsinki"), ZoneInfo("UTC")
DAY = (MONDAY, at(24))


def rendered_lines(renderable):
    text = StringIO()
    Console(width=140, file=text).print(renderable)
    return text.getvalue().splitlines()


def calendar_symbols(bookings, window, slots=()):
    """Return the symbols after the name of the only node."""
    return rendered_lines(draw_calendar([NODE], bookings, slots, window, UTC_ZONE))[2].removeprefix("  p3-01  ")


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (10, "·····▒████████████▒·······▒████████▒·····◆◆◆◆◆◆◆◆◆◆◆◆·······"),
        (30, "·▒████▒·▒███·◆◆◆◆◆" + 42 * "·"),
        (60, "▒██▒▄█◆◆◆" + 51 * "·"),
        (96, "▄▄▄◆◆" + 43 * "·"),
    ],
)
def test_a_calendar_symbol_shows_a_found_slot_rather_than_a_reservation_and_this_rather_than_cleaning(hours, expected):
    bookings = [booked(NODE, at(1), at(3)), booked(NODE, at(4, 30), at(5, 50))]
    slots = [TimeSlot((NODE,), at(6, 50), at(8, 50), None)]
    assert calendar_symbols(bookings, (MONDAY, at(hours)), slots) == expected


def test_the_first_label_of_the_calendar_is_a_full_hour():
    assert rendered_lines(draw_calendar([NODE], [], [], (at(1, 17), at(20)), UTC_ZONE))[0].startswith(
        "UTC      11-23 01:00 11-23 07:00"
    )


def test_bookings_are_shown_only_within_the_time_window_of_the_calendar():
    bookings = [booked(NODE, at(-30), at(-20)), booked(NODE, at(-9), at(2)), booked(NODE, at(22), at(90))]
    bookings.append(booked(NODE, at(200), at(300)))
    assert calendar_symbols(bookings, DAY) == 4 * "█" + "▒" + 38 * "·" + "▒" + 4 * "█"


@pytest.mark.parametrize(
    ("hours", "step"), [(1, "10m"), (24, "30m"), (7 * 24, "4h"), (60 * 24, "24h"), (99 * 24, "48h")]
)
def test_the_calendar_of_any_time_window_has_at_most_61_symbols(hours, step):
    window = (at(0, 7), at(hours, 7))
    assert len(calendar_symbols([], window)) <= 61
    assert rendered_lines(draw_calendar([NODE], [], [], window, UTC_ZONE))[-1].endswith(f"one symbol is {step}")


def test_both_time_zones_are_above_the_calendar_and_follow_clock_changes():
    window = (datetime(2026, 10, 24, 18, tzinfo=UTC), datetime(2026, 10, 25, 18, tzinfo=UTC))
    utc, local = rendered_lines(draw_calendar([NODE], [], [], window, HELSINKI))[:2]
    assert utc.split(maxsplit=1) == ["UTC", "10-24 18:00 10-25 00:00 10-25 06:00 10-25 12:00 "]
    assert local.split(maxsplit=1) == ["Europe/Helsinki", "10-24 21:00 10-25 03:00 10-25 08:00 10-25 14:00 "]


def test_nodes_are_sorted_by_name_under_their_hardware():
    hosts = [NODE, gigaio("g-2"), gigaio("g-1"), gigaio("g-0", gpus=0)]
    names = [
        line.partition("·")[0].rstrip() for line in rendered_lines(draw_calendar(hosts, [], [], DAY, UTC_ZONE))[1:-1]
    ]
    assert names == [
        "compute_gigaio at CHI@UC with 1 x NVIDIA A100 80 GiB",
        "  g-1",
        "  g-2",
        "compute_gigaio at CHI@UC with no GPU",
        "  g-0",
        "gpu_a100_pcie at CHI@UC with 4 x NVIDIA A100 80 GiB PCIe",
        "  p3-01",
    ]
