"""Draw the reservations of hosts and the free time slots for a terminal."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from zoneinfo import ZoneInfo

from rich.console import Group
from rich.text import Text

from provision.availability.matching import hardware_in_words
from provision.availability.search import CLEANING_TIME
from provision.availability.times import MINUTE, length_in_words
from provision.models import Booking, Host, HostBooking, TimeSlot

UTC_ZONE = ZoneInfo("UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FREE, CLEANED, RESERVED, FOUND = range(4)
"""The state of a host in one minute. CLEANED: the site cleans the host before or after a reservation.

FOUND: the minute is in a time slot that the search found.
"""
SYMBOLS = {
    "found": ("◆", "bold green"),
    "reserved": ("█", "red"),
    "partly reserved": ("▄", "red"),
    "cleaning": ("▒", "yellow"),
    "free": ("·", "dim"),
}
SYMBOLS_PER_LINE = 60
"""Approximate number of symbols per line; with the name of a node, a line fits 80 columns."""
SYMBOLS_PER_TICK = 12
"""Number of symbols between two times in the header."""
DAY_MINUTES = 24 * 60
MINUTES_PER_SYMBOL = (10, 30, 60, 120, 240, 480, 720)
"""Minutes that a symbol may represent. In a longer calendar, each symbol represents one or more whole days."""


@dataclass(frozen=True)
class _Axis:
    """The time axis: a line of symbols that all represent the same number of minutes; the first begins at ``start``."""

    start: datetime
    minutes_per_symbol: int
    symbol_count: int

    def slice_of_period(self, begin: datetime, end: datetime) -> slice:
        """Return the minutes of the axis that the period from ``begin`` to ``end`` overlaps, as a slice."""
        first, last = (begin - self.start) // MINUTE, -((self.start - end) // MINUTE)
        return slice(max(first, 0), min(max(last, 0), self.symbol_count * self.minutes_per_symbol))


def draw_calendar(
    hosts: Sequence[Host],
    bookings: Iterable[Booking],
    slots: Sequence[TimeSlot],
    window: tuple[datetime, datetime],
    zone: ZoneInfo,
) -> Group:
    """Draw one line per host, which shows when the host is reserved, cleaned or free, and the ``slots`` of the host.

    window: begin and end of the calendar. The header has times in UTC and in ``zone``.
    """
    axis, zones = _make_axis(*window), shown_zones(zone)
    booked = defaultdict(list)
    for booking in bookings:
        booked[booking.host_id].append(booking)
    margin = max(len(name) for name in [shown.key for shown in zones] + [f"  {host.name}" for host in hosts]) + 2
    lines = [Text(shown.key.ljust(margin) + _tick_labels(axis, shown), "dim") for shown in zones]
    for kind, group in groupby(
        sorted(hosts, key=lambda host: (hardware_in_words(host), host.name)), key=hardware_in_words
    ):
        lines.append(Text(kind, "bold"))
        for host in group:
            states = _symbol_states(axis, booked[host.id], [slot for slot in slots if host in slot.hosts])
            lines.append(Text(f"  {host.name}".ljust(margin)) + _draw_states(states))
    return Group(*lines, _legend(axis))


def shown_zones(zone: ZoneInfo) -> list[ZoneInfo]:
    """Return UTC and ``zone``, or only UTC if ``zone`` is UTC."""
    return [UTC_ZONE] if zone.key.endswith("UTC") else [UTC_ZONE, zone]


def start_and_end_in_words(slot: TimeSlot | HostBooking, zone: ZoneInfo) -> str:
    """Return start and end as local times of ``zone``: 2026-11-23 14:00 to 16:50; with both dates if they differ."""
    start, end = slot.start.astimezone(zone), slot.end.astimezone(zone)
    date = "" if start.date() == end.date() else f"{end:%Y-%m-%d} "
    return f"{start:%Y-%m-%d %H:%M} to {date}{end:%H:%M}"


def _make_axis(begin: datetime, end: datetime) -> _Axis:
    """Return the axis with the fewest minutes per symbol that shows the window in about SYMBOLS_PER_LINE symbols."""
    length = (end - begin) // MINUTE
    days = -(-length // (SYMBOLS_PER_LINE * DAY_MINUTES)) * DAY_MINUTES
    step = next((step for step in MINUTES_PER_SYMBOL if step * SYMBOLS_PER_LINE >= length), days)
    start = begin - (begin - EPOCH) % (step * MINUTE)
    return _Axis(start, step, -((start - end) // (step * MINUTE)))


def _tick_labels(axis: _Axis, zone: ZoneInfo) -> str:
    """Return a line of the header: the local date and time at which every SYMBOLS_PER_TICK-th symbol begins."""
    times = (
        axis.start.astimezone(UTC) + number * axis.minutes_per_symbol * MINUTE
        for number in range(0, axis.symbol_count, SYMBOLS_PER_TICK)
    )
    return "".join(f"{time.astimezone(zone):%m-%d %H:%M}".ljust(SYMBOLS_PER_TICK) for time in times)


def _symbol_states(axis: _Axis, bookings: Sequence[Booking], slots: Sequence[TimeSlot]) -> Iterator[str]:
    """Yield the state that each symbol of a host's line shows."""
    minutes = bytearray(axis.symbol_count * axis.minutes_per_symbol)
    periods = [(CLEANED, booking.start - CLEANING_TIME, booking.end + CLEANING_TIME) for booking in bookings]
    periods += [(RESERVED, booking.start, booking.end) for booking in bookings]
    periods += [(FOUND, slot.start, slot.end) for slot in slots]
    for state, begin, end in periods:
        part = axis.slice_of_period(begin, end)
        minutes[part] = bytes([state]) * len(minutes[part])
    return (
        _shown_state(set(minutes[first : first + axis.minutes_per_symbol]))
        for first in range(0, len(minutes), axis.minutes_per_symbol)
    )


def _shown_state(states: set[int]) -> str:
    """Return the state that a symbol shows. states: the states of the minutes that the symbol represents."""
    if FOUND in states:
        return "found"
    if RESERVED in states:
        return "partly reserved" if FREE in states else "reserved"
    return "cleaning" if CLEANED in states else "free"


def _draw_states(states: Iterable[str]) -> Text:
    return Text.assemble(*(SYMBOLS[state] for state in states))


def _legend(axis: _Axis) -> Text:
    symbols = (part for state, symbol in SYMBOLS.items() for part in (symbol, f" {state}  "))
    return Text.assemble(*symbols, f"one symbol is {length_in_words(axis.minutes_per_symbol * MINUTE)}")
