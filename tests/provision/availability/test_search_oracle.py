"""The search compared with a search that checks every minute, on random calendars."""

import struct
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provision.availability import search
from provision.models import Booking, DailyWindow, Host, Requirements, TimeSlot

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
DAY = 24 * 60
CLEANING_MINUTES, LAST_MINUTE = 10, 50
HORIZON_DAYS = 3
KINDS = (("CHI@UC", "a", 4, 16.0), ("CHI@UC", "b", 1, None), ("CHI@TACC", "a", 4, 2.0))
HOSTS = [
    Host(str(n), f"node-{n}", *KINDS[n % 3][:2], "A100", *KINDS[n % 3][2:3], 80.0, "", KINDS[n % 3][3])
    for n in range(5)
]
CLOCK_CHANGES = [
    ("UTC", datetime(2026, 11, 23, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2026, 11, 23, tzinfo=UTC)),
    ("Europe/Helsinki", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("Europe/Helsinki", datetime(2027, 3, 28, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2027, 4, 3, 15, tzinfo=UTC)),
]


@pytest.fixture(autouse=True, scope="module")
def with_short_horizon():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "HORIZON", timedelta(days=HORIZON_DAYS))
        yield


@cache
def clock(minute, zone):
    """Return the local time at a minute since 1970, as minutes after midnight."""
    local = datetime.fromtimestamp(minute * 60, ZoneInfo(zone))
    return local.hour * 60 + local.minute


def slot_in_words(minute, hours):
    time = clock(minute, hours.zone.key)
    if hours.begin_minute < hours.end_minute:
        return hours.begin_minute <= time < hours.end_minute
    return time >= hours.begin_minute or time < hours.end_minute


def unavailable_minutes(host, bookings, first):
    """Return, for every minute from ``first`` on, whether a host is reserved or being cleaned."""
    minutes = bytearray((HORIZON_DAYS + 5) * DAY)
    for booking in bookings:
        if booking.host_id == host.id:
            begin = int(booking.start.timestamp() // 60) - CLEANING_MINUTES - first
            end = int(-(-booking.end.timestamp() // 60)) + CLEANING_MINUTES - first
            taken = slice(max(begin, 0), max(min(end, len(minutes)), 0))
            minutes[taken] = b"\1" * len(minutes[taken])
    return minutes


def slots_minute_by_minute(bookings, requirements, now):
    """Return the time slots that search.earliest_slots must return, in the same order, by checking every minute."""
    length = requirements.length // MINUTE
    begin = requirements.start or max(now, requirements.not_before or now)
    first = int(-(-begin.timestamp() // 60))
    minutes = [first] if requirements.start else range(first, first + HORIZON_DAYS * DAY + 60)
    searched = [minute for minute in minutes if requirements.start or (minute + length) % 60 == LAST_MINUTE]
    found = []
    for _, group in groupby(sorted(HOSTS, key=site_and_type), key=site_and_type):
        hosts = [(host, unavailable_minutes(host, bookings, first)) for host in group if host.gpus >= requirements.gpus]
        busy_until = 0
        for start in searched[: HORIZON_DAYS * 24]:
            free = [host for host, busy in hosts if busy.find(1, start - first, start - first + length) < 0]
            if start < busy_until or len(free) < requirements.host_count:
                continue
            if requirements.hours is None or all(
                slot_in_words(minute, requirements.hours) for minute in range(start, start + length)
            ):
                found.append(time_slot(free[: requirements.host_count], start, length))
                busy_until = start + length
    return sorted(found, key=lambda slot: (slot.start, slot.cost_su is None, slot.cost_su or 0, slot.hosts[0].site))


def site_and_type(host):
    return host.site, host.node_type


def time_slot(hosts, start, length):
    cost = None if hosts[0].su_per_hour is None else hosts[0].su_per_hour * len(hosts) * (length / 60)
    begin = datetime.fromtimestamp(start * 60, UTC)
    return TimeSlot(tuple(hosts), begin, begin + length * MINUTE, cost)


@st.composite
def cases(draw):
    """Bookings, requirements and a current time close to a clock change."""
    zone, change = draw(st.sampled_from(CLOCK_CHANGES))
    now = change - draw(st.integers(0, 2 * DAY * 60)) * SECOND
    begins = now - DAY * MINUTE
    bookings = [
        Booking(str(host % 7), start := begins + odd % (8 * DAY) * MINUTE / 2, start + length % DAY * MINUTE)
        for host, odd, length in struct.iter_unpack("<BHH", draw(st.binary(min_size=50, max_size=50)))
    ]
    hours = draw(
        st.none() | st.builds(DailyWindow, st.integers(0, DAY - 1), st.integers(1, DAY), st.just(ZoneInfo(zone)))
    )
    longest = (hours.end_minute - hours.begin_minute - 1) % DAY + 1 if hours else 3 * DAY
    minutes = draw(st.integers(1, longest) | st.sampled_from((60, 120, 170, 180)).map(lambda m: min(m, longest)))
    when = {draw(st.sampled_from(("start", "not_before"))): now + draw(st.integers(0, 2 * DAY)) * MINUTE}
    requirements = Requirements(
        length=minutes * MINUTE,
        gpus=draw(st.sampled_from((1, 4))),
        host_count=draw(st.integers(1, 2)),
        hours=hours if hours and (hours.end_minute - hours.begin_minute) % DAY else None,
        **(when if draw(st.booleans()) else {}),
    )
    return bookings, requirements, now


@settings(max_examples=2_000, deadline=None)
@given(cases())
def test_the_search_finds_the_same_slots_as_a_search_of_every_minute(case):
    bookings, requirements, now = case
    expected = slots_minute_by_minute(bookings, requirements, now)
    assert search.earliest_slots(HOSTS, bookings, requirements, now, limit=len(expected) + 1) == expected
