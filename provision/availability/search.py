"""Search for the earliest time slots in which hosts are free.

The search queries no site and no clock: its result depends only on the hosts, bookings, requirements and the time that
the caller passes. The internal functions count minutes since 1970 in UTC, because reservations have whole minutes.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice
from zoneinfo import ZoneInfo

from provision.availability.matching import groups_of_equal_hosts, matching_hosts
from provision.availability.times import MINUTE, length_in_words, lies_within, time_in_words, window_length
from provision.errors import BadTime
from provision.models import Booking, Host, Requirements, TimeSlot

CLEANING_TIME = timedelta(minutes=10)
"""Time that a host stays free before and after a time slot, so that the site can clean the host.

The site's setting (Blazar's cleaning_time, on both sides of a lease) cannot be queried. The program assumes ten
minutes, because the time slots in the labs' instructions end ten minutes before the full hour.
"""
MAX_LEASE = timedelta(days=7)
"""The longest lease without an extension: max_reservation_length in Chameleon's published Blazar configuration."""
END_MINUTE = 50
"""Slots end at this minute of an hour, so that the host is cleaned before a lease that begins at the full hour."""
HORIZON = timedelta(days=60)
"""How far into the future the search looks."""

UTC_ZONE = ZoneInfo("UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_MINUTES = 60
FOREVER = 1 << 40
"""A minute after the end of every search."""

Period = tuple[int, int]
"""Begin and end, minutes since 1970."""


def earliest_slots(
    hosts: Sequence[Host], bookings: Iterable[Booking], requirements: Requirements, now: datetime, limit: int = 5
) -> list[TimeSlot]:
    """Return up to ``limit`` time slots that meet ``requirements``, earliest first, then cheapest.

    Each group of hosts with equal type, site and GPUs contributes slots that follow one another without overlap. If no
    start is requested, slots end at END_MINUTE. Raises NoSuchHost if too few equal hosts meet the requirements, and
    BadTime for a time or length that is not allowed.
    """
    _validate(requirements, now)
    groups = groups_of_equal_hosts(matching_hosts(hosts, requirements), requirements.host_count)
    periods = _booked_periods(bookings, {host.id for group in groups for host in group})
    starts = _allowed_starts(requirements, now)
    slots = (_slots_of_group(group, periods, requirements, starts) for group in groups)
    return list(islice(heapq.merge(*slots, key=slot_sort_key), limit))


def _validate(requirements: Requirements, now: datetime) -> None:
    """Raise BadTime if the requested time or length is not allowed."""
    for moment in filter(None, (requirements.start, requirements.not_before)):
        if moment.tzinfo is None:
            text = f"{moment:%Y-%m-%d %H:%M}"
            raise BadTime(f"time '{text}' has no time zone; allowed: '{text}Z' or another time zone")
    length, longest = length_in_words(requirements.length), length_in_words(MAX_LEASE)
    if requirements.length % MINUTE or not timedelta() < requirements.length <= MAX_LEASE:
        raise BadTime(f"length {length} is not possible; allowed: whole minutes, more than 0m, at most {longest}")
    if requirements.start and _minute_containing(requirements.start) < _minute_containing(now):
        start, first = time_in_words(requirements.start, UTC_ZONE), time_in_words(now, UTC_ZONE)
        raise BadTime(f"start {start} is in the past; allowed: {first} or later")
    if requirements.hours and requirements.length > window_length(requirements.hours):
        widest = length_in_words(window_length(requirements.hours))
        raise BadTime(f"length {length} is longer than the daily window; allowed: at most {widest}")


def _allowed_starts(requirements: Requirements, now: datetime) -> Sequence[int]:
    """Return the allowed starts, in order, in minutes since 1970."""
    starts = (
        [_first_minute_after(requirements.start)]
        if requirements.start
        else _searched_starts(requirements, _first_minute_after(max(now, requirements.not_before or now)))
    )
    if not requirements.hours:
        return starts
    return [start for start in starts if lies_within(requirements.hours, _time_of_minute(start), requirements.length)]


def _searched_starts(requirements: Requirements, first: int) -> range:
    """Return the minute in each hour at which a slot that ends at END_MINUTE begins. first: the earliest minute."""
    first += (END_MINUTE - first - requirements.length // MINUTE) % HOUR_MINUTES
    return range(first, first + HORIZON // MINUTE, HOUR_MINUTES)


def _booked_periods(bookings: Iterable[Booking], hosts: set[str]) -> dict[str, list[Period]]:
    """Return the booked periods of each host, sorted, by host id. hosts: ids of the hosts."""
    periods = defaultdict(list)
    for booking in bookings:
        if booking.host_id in hosts:
            periods[booking.host_id].append((_minute_containing(booking.start), _first_minute_after(booking.end)))
    return {host: sorted(taken) for host, taken in periods.items()}


def _slots_of_group(
    group: Sequence[Host], periods: Mapping[str, list[Period]], requirements: Requirements, starts: Sequence[int]
) -> Iterator[TimeSlot]:
    """Yield consecutive slots for which enough hosts of a group are free."""
    length_minutes = requirements.length // MINUTE
    free = {host: list(_free_ranges(starts, periods.get(host.id, []), length_minutes)) for host in group}
    last_end = 0
    for index, host_count in enumerate(_free_host_counts(free.values(), len(starts))):
        if host_count >= requirements.host_count and starts[index] >= last_end:
            last_end = starts[index] + length_minutes
            chosen = [host for host in group if any(index in indices for indices in free[host])]
            yield _make_slot(tuple(chosen[: requirements.host_count]), starts[index], requirements.length)


def _free_ranges(starts: Sequence[int], periods: Sequence[Period], length_minutes: int) -> Iterator[range]:
    """Yield the ranges of indices of ``starts`` at which a slot fits between a host's booked periods.

    The slot overlaps no booked period, and no cleaning before or after a booked period.
    """
    cleaning_minutes = CLEANING_TIME // MINUTE
    first_start = 0
    for begin, end in (*periods, (FOREVER, FOREVER)):
        last_start = begin - cleaning_minutes - length_minutes
        if first_start <= last_start:
            yield range(bisect_left(starts, first_start), bisect_right(starts, last_start))
        first_start = max(first_start, end + cleaning_minutes)


def _free_host_counts(free: Iterable[Iterable[range]], start_count: int) -> Iterator[int]:
    """Yield the number of free hosts for each of the possible starts of a slot.

    free: for each host, the ranges of indices of the starts at which it is free.
    """
    steps = [0] * (start_count + 1)
    for indices in (indices for host in free for indices in host):
        steps[indices.start] += 1
        steps[indices.stop] -= 1
    return islice(accumulate(steps), start_count)


def _make_slot(hosts: tuple[Host, ...], start: int, length: timedelta) -> TimeSlot:
    prices = [host.su_per_hour for host in hosts]
    cost = None if None in prices else sum(filter(None, prices)) * (length // MINUTE / HOUR_MINUTES)
    return TimeSlot(hosts, _time_of_minute(start), _time_of_minute(start) + length, cost)


def slot_sort_key(slot: TimeSlot) -> tuple[datetime, bool, float, str, str]:
    """Return the sort key: earlier slots first; of slots that start together, the cheapest first, unknown cost last."""
    return slot.start, slot.cost_su is None, slot.cost_su or 0, slot.hosts[0].site, slot.hosts[0].name


def _minute_containing(moment: datetime) -> int:
    """Return the minute that contains a moment."""
    return (moment - EPOCH) // MINUTE


def _first_minute_after(moment: datetime) -> int:
    """Return the first minute that begins at or after a moment."""
    return -((EPOCH - moment) // MINUTE)


def _time_of_minute(minute: int) -> datetime:
    return EPOCH + minute * MINUTE
