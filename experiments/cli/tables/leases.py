"""Time slots and leases as tables for a terminal."""

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from experiments.system.tables import Column, Table
from provision.availability.calendar import shown_zones, start_and_end_in_words
from provision.availability.times import length_in_words, local_zone, start_in_words, time_in_words
from provision.leasing.release import LeaseSnapshot
from provision.leasing.request import deletion_reason, end_when_idle_of, requested_end_when_idle
from provision.models import Host, HostBooking, Lease, TimeSlot

SETUP_NOT_FINISHED = "does not end itself: its setup did not finish; `testbed lease` with the same options resumes it"


def slots_table(slots: Sequence[TimeSlot], zone: ZoneInfo) -> Table:
    """Return a table of time slots: time in UTC and in ``zone``, nodes, type, service units."""
    zones = shown_zones(zone)
    nodes, cost = Column("nodes", prose=True), Column("service units", number=True)
    table = Table(*(one.key for one in zones), nodes, "type", cost)
    for slot in slots:
        names = ", ".join(host.name for host in slot.hosts)
        price = "unknown" if slot.cost_su is None else f"{slot.cost_su:.1f}"
        table.add(*(start_and_end_in_words(slot, one) for one in zones), names, _host_type(slot.hosts[0]), price)
    return table


def states_table(states: Sequence[LeaseSnapshot], now: datetime) -> Table:
    """Return a table of active leases: when they start and end, the time left, nodes, and cost so far and in total."""
    nodes, servers = Column("nodes", prose=True), Column("servers", prose=True)
    table = Table("lease", "status", "start", "end", "time", nodes, "cost", servers, Column("addresses", prose=True))
    for state in states:
        lease = state.lease
        table.add(
            state.active_lease.name,
            _lease_status(state),
            *((time_in_words(time, local_zone()) for time in (lease.start, lease.end)) if lease else ("", "")),
            _lease_time_left(lease, now) if lease else "",
            ", ".join(map(host_in_words, state.hosts)),
            _cost_text(state),
            ", ".join(f"{server.name} {server.status}" for server in state.servers),
            ", ".join(state.ips),
        )
    return table


def lease_line(state: LeaseSnapshot, now: datetime) -> str:
    """Return an active lease in a line: its name, the time left, and the cost so far and in total."""
    left = _lease_time_left(state.lease, now) if state.lease else deletion_reason(state.active_lease) or "gone"
    facts = (state.active_lease.name, left, _cost_text(state))
    return "lease " + ", ".join(filter(None, facts))


def bookings_table(bookings: Sequence[HostBooking], zone: ZoneInfo) -> Table:
    """Return a table of reservations: node, type, start and end in UTC and in ``zone``."""
    zones = shown_zones(zone)
    table = Table("node", *(one.key for one in zones), "type")
    for booking in bookings:
        times = (start_and_end_in_words(booking, one) for one in zones)
        table.add(booking.host.name, *times, _host_type(booking.host))
    return table


def host_in_words(host: Host) -> str:
    """Return a node's name, type and site."""
    return f"{host.name} {_host_type(host)}"


def _lease_status(state: LeaseSnapshot) -> str:
    """Return a lease's status and, if the lease ends itself, after how much idle time."""
    if state.lease is None:
        return deletion_reason(state.active_lease) or "gone"
    if end_when_idle := end_when_idle_of(state.active_lease):
        return f"{state.lease.status}, {end_when_idle.in_words}"
    interrupted = requested_end_when_idle(state.active_lease) is not None
    return f"{state.lease.status}, {SETUP_NOT_FINISHED}" if interrupted else state.lease.status


def _host_type(host: Host) -> str:
    return f"{host.node_type} at {host.site}"


def _lease_time_left(lease: Lease, now: datetime) -> str:
    if now < lease.start:
        return start_in_words(lease.start, now)
    return f"{length_in_words(lease.end - now)} left" if now < lease.end else "over"


def _cost_text(state: LeaseSnapshot) -> str:
    if state.lease is None:
        return ""
    used, total = ("?" if su is None else f"{su:.1f}" for su in (state.used_su, state.total_su))
    return f"{used} of {total} SU"
