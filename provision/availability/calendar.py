"""Reservations of hosts, and blocks found among them, to look at in a terminal."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from zoneinfo import ZoneInfo

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from provision.availability.matching import hardware
from provision.availability.search import CLEANING
from provision.availability.times import MINUTE, length_in_words
from provision.models import Booking, Host, TimeSlot

UTC_ZONE = ZoneInfo("UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FREE, CLEANED, RESERVED, FOUND = range(4)
SIGNS = {
    "found": ("◆", "bold green"),
    "reserved": ("█", "red"),
    "reserved in part": ("▄", "red"),
    "cleaning": ("▒", "yellow"),
    "free": ("·", "dim"),
}
CELLS = 60
"""About as many signs as a line has: with a node's name in front they fit 80 columns."""
TICK = 12
"""Signs from one time above the lines to the next."""
DAY_MINUTES = 24 * 60
STEPS = (10, 30, 60, 120, 240, 480, 720)
"""Minutes that a sign may stand for, besides whole days."""


@dataclass(frozen=True)
class _Axis:
    """The signs of a line: the first begins at start, each stands for ``step`` minutes."""

    start: datetime
    step: int
    cells: int

    def minutes(self, begin: datetime, end: datetime) -> slice:
        """The minutes of the line that a period has a part of."""
        first, last = (begin - self.start) // MINUTE, -((self.start - end) // MINUTE)
        return slice(max(first, 0), min(max(last, 0), self.cells * self.step))


def calendar(
    hosts: Sequence[Host],
    bookings: Iterable[Booking],
    slots: Sequence[TimeSlot],
    window: tuple[datetime, datetime],
    zone: ZoneInfo,
) -> Group:
    """A line a host: when it is reserved, cleaned and free within ``window``, and the blocks of ``slots`` on it.

    Times stand above, in UTC and by the clocks of ``zone``.
    """
    axis, clocks = _axis(*window), _clocks(zone)
    booked = defaultdict(list)
    for booking in bookings:
        booked[booking.host_id].append(booking)
    margin = max(len(name) for name in [clock.key for clock in clocks] + [f"  {host.name}" for host in hosts]) + 2
    lines = [Text(clock.key.ljust(margin) + _ticks(axis, clock), "dim") for clock in clocks]
    for kind, group in groupby(sorted(hosts, key=lambda host: (hardware(host), host.name)), key=hardware):
        lines.append(Text(kind, "bold"))
        for host in group:
            states = _states(axis, booked[host.id], [slot for slot in slots if host in slot.hosts])
            lines.append(Text(f"  {host.name}".ljust(margin)) + _signs(states))
    return Group(*lines, _legend(axis))


def slot_table(slots: Sequence[TimeSlot], zone: ZoneInfo) -> Table:
    """A line a block: when, in UTC and by the clocks of ``zone``, on which nodes, for how many service units."""
    clocks = _clocks(zone)
    cost = Column("service units", justify="right")
    table = Table(*(clock.key for clock in clocks), "nodes", "type", cost, box=SIMPLE_HEAD, pad_edge=False)
    for slot in slots:
        times = [_span(slot, clock) for clock in clocks]
        names = ", ".join(host.name for host in slot.hosts)
        kind = f"{slot.hosts[0].node_type} at {slot.hosts[0].site}"
        table.add_row(*map(Text, (*times, names, kind, "not told" if slot.cost_su is None else f"{slot.cost_su:.1f}")))
    return table


def _clocks(zone: ZoneInfo) -> list[ZoneInfo]:
    """UTC and ``zone``; one of them where they are the same."""
    return [UTC_ZONE] if zone.key.endswith("UTC") else [UTC_ZONE, zone]


def _span(slot: TimeSlot, zone: ZoneInfo) -> str:
    """From when until when by the clocks of a zone, with the date of the end where it is another one."""
    start, end = slot.start.astimezone(zone), slot.end.astimezone(zone)
    date = "" if start.date() == end.date() else f"{end:%Y-%m-%d} "
    return f"{start:%Y-%m-%d %H:%M} to {date}{end:%H:%M}"


def _axis(begin: datetime, end: datetime) -> _Axis:
    """Signs of the shortest step that shows the window in about CELLS."""
    length = (end - begin) // MINUTE
    days = -(-length // (CELLS * DAY_MINUTES)) * DAY_MINUTES
    step = next((step for step in STEPS if step * CELLS >= length), days)
    start = begin - (begin - EPOCH) % (step * MINUTE)
    return _Axis(start, step, -((start - end) // (step * MINUTE)))


def _ticks(axis: _Axis, zone: ZoneInfo) -> str:
    """The dates and times at which every TICK-th sign begins."""
    times = (axis.start.astimezone(UTC) + cell * axis.step * MINUTE for cell in range(0, axis.cells, TICK))
    return "".join(f"{time.astimezone(zone):%m-%d %H:%M}".ljust(TICK) for time in times)


def _states(axis: _Axis, bookings: Sequence[Booking], slots: Sequence[TimeSlot]) -> Iterator[str]:
    """What each sign of a host's line says."""
    minutes = bytearray(axis.cells * axis.step)
    periods = [(CLEANED, booking.start - CLEANING, booking.end + CLEANING) for booking in bookings]
    periods += [(RESERVED, booking.start, booking.end) for booking in bookings]
    periods += [(FOUND, slot.start, slot.end) for slot in slots]
    for state, begin, end in periods:
        part = axis.minutes(begin, end)
        minutes[part] = bytes([state]) * len(minutes[part])
    return (_state(set(minutes[first : first + axis.step])) for first in range(0, len(minutes), axis.step))


def _state(minutes: set[int]) -> str:
    """What a sign says whose minutes have these states."""
    if FOUND in minutes:
        return "found"
    if RESERVED in minutes:
        return "reserved in part" if FREE in minutes else "reserved"
    return "cleaning" if CLEANED in minutes else "free"


def _signs(states: Iterable[str]) -> Text:
    return Text.assemble(*(SIGNS[state] for state in states))


def _legend(axis: _Axis) -> Text:
    signs = (part for state, sign in SIGNS.items() for part in (sign, f" {state}  "))
    return Text.assemble(*signs, f"a sign is {length_in_words(axis.step * MINUTE)}")
