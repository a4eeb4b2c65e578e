"""What OpenStack's services answer, as this package's records."""

import re
from datetime import UTC, datetime
from typing import Any

from provision.errors import Unreachable
from provision.models import TAG, Address, Lease, Server

OWNER = re.compile(f"{TAG.pattern} of (\\w+)")


def moment(text: str) -> datetime:
    """A time as Blazar writes it: UTC without saying so."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def lease_of(lease: dict[str, Any], hosts: tuple[str, ...]) -> Lease:
    """A lease as Blazar tells of it, on these hosts; Unreachable while it has no reservations yet."""
    if not lease["reservations"]:
        raise Unreachable(f"blazar: lease {lease['name']} is still being made")
    reservations = by_id(lease["reservations"])
    tag = mark_in(reservations[0].get("hypervisor_properties")) or mark_in(lease["name"])
    return Lease(
        id=lease["id"],
        name=lease["name"].removesuffix(f" {tag}"),
        status=lease["status"],
        start=moment(lease["start_date"]),
        end=moment(lease["end_date"]),
        resources=tuple(reservation["id"] for reservation in reservations),
        hosts=hosts,
        tag=tag,
        created=str(lease["created_at"]),
        owner=lease["user_id"],
        fault=_lease_fault(lease) if lease["status"] == "ERROR" else "",
    )


def by_id(reservations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A lease's reservations in the order of their servers."""
    return sorted(reservations, key=lambda reservation: reservation["id"])


def _lease_fault(lease: dict[str, Any]) -> str:
    """Which steps and reservations failed, as Blazar tells; it keeps the cause to its log."""
    steps = [f"blazar: {event['event_type']} failed" for event in lease.get("events", ()) if event["status"] == "ERROR"]
    failed = [one for one in by_id(lease["reservations"]) if one["status"] == "error"]
    missing = [f"the host of reservation {one['id']} is missing" for one in failed if one.get("missing_resources")]
    return "; ".join([*steps, *(f"reservation {one['id']} is in error" for one in failed), *missing])


def server_of(server: Any) -> Server:
    """A server as nova tells of it."""
    fault = (server.fault or {}).get("message", "") if server.status == "ERROR" else ""
    image = (server.image or {}).get("id", "") if server.image else ""
    tag = (server.metadata or {}).get("llm-testbed", "")
    return Server(
        server.id, server.name, server.status, tag, fault, image, owner=server.user_id, task=server.task_state or ""
    )


def address_of(ip: Any, server: str) -> Address:
    """A floating IP as neutron tells of it, and the id of the server that it leads to."""
    return Address(ip.id, ip.floating_ip_address, server, mark_in(ip.description), owner_in(ip.description))


def mark_in(text: str | None) -> str:
    """The mark in a text, '' where there is none."""
    found = TAG.search(text or "")
    return found[0] if found else ""


def owner_in(text: str | None) -> str:
    """The id of the user in a label, '' where there is none."""
    found = OWNER.search(text or "")
    return found[1] if found else ""
