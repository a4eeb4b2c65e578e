"""Convert records in the responses of OpenStack services to the data classes of provision.models."""

import re
from datetime import UTC, datetime
from typing import Any

from provision.models import TAG, Address, Lease, Server

CREATING = "CREATING"
"""Blazar's status of a lease whose list of reservations may still be incomplete."""
CONVERSION_ERRORS = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""Errors that the conversions below raise for a record with missing or malformed fields."""
OWNER = re.compile(f"{TAG.pattern} of (\\w+)")
"""The format of a label with tag and user id, which Cloud.owner_label writes."""


def parse_blazar_time(text: str) -> datetime:
    """Parse a time in Blazar's format, which is UTC without an offset."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def to_lease(lease: dict[str, Any], hosts: tuple[str, ...]) -> Lease:
    """Convert Blazar's record of a lease. hosts: ids of the hosts. Raises ValueError if there are no reservations."""
    if not lease["reservations"]:
        raise ValueError(f"lease {lease['name']} has no reservations")
    reservations = sorted_by_id(lease["reservations"])
    tag = find_tag(reservations[0].get("hypervisor_properties")) or find_tag(lease["name"])
    return Lease(
        id=lease["id"],
        name=lease["name"].removesuffix(f" {tag}"),
        status=lease["status"],
        start=parse_blazar_time(lease["start_date"]),
        end=parse_blazar_time(lease["end_date"]),
        reservation_ids=tuple(reservation["id"] for reservation in reservations),
        hosts=hosts,
        tag=tag,
        created=str(lease["created_at"]),
        owner=lease["user_id"],
        fault=_lease_fault(lease) if lease["status"] == "ERROR" else "",
    )


def sorted_by_id(reservations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a lease's reservations, sorted by id: the first one is for the lease's first server, and so on."""
    return sorted(reservations, key=lambda reservation: reservation["id"])


def _lease_fault(lease: dict[str, Any]) -> str:
    """Return in words which steps and reservations failed; Blazar writes the cause only to its own log."""
    steps = [f"blazar: {event['event_type']} failed" for event in lease.get("events", ()) if event["status"] == "ERROR"]
    failed = [reservation for reservation in sorted_by_id(lease["reservations"]) if reservation["status"] == "error"]
    errors = [f"reservation {reservation['id']} is in error" for reservation in failed]
    missing_hosts = [
        f"the host of reservation {reservation['id']} is missing"
        for reservation in failed
        if reservation.get("missing_resources")
    ]
    return "; ".join([*steps, *errors, *missing_hosts])


def to_server(server: Any) -> Server:
    """Convert nova's record of a server."""
    fault = (server.fault or {}).get("message", "") if server.status == "ERROR" else ""
    image = (server.image or {}).get("id", "") if server.image else ""
    tag = (server.metadata or {}).get("llm-testbed", "")
    return Server(
        server.id, server.name, server.status, tag, fault, image, owner=server.user_id, task=server.task_state or ""
    )


def to_address(ip: Any, server: str) -> Address:
    """Convert neutron's record of a floating IP. server: id of the server that it is attached to, '' for none."""
    return Address(ip.id, ip.floating_ip_address, server, find_tag(ip.description), find_owner(ip.description))


def may_be_own_record(record: Any, user_id: str) -> bool:
    """Return whether an unreadable record may be of a resource that this program created for the user.

    True if the record contains the user's id, and a tag or the status CREATING.
    """
    text = str(record)
    return bool(re.search(rf"\b{re.escape(user_id)}\b", text)) and bool(TAG.search(text) or CREATING in text)


def record_name(record: Any) -> str:
    """Return a record's name, else its id, for messages. For a tuple, return the name of its last element."""
    if isinstance(record, tuple):
        return record_name(record[-1])
    fields = record if isinstance(record, dict) else getattr(record, "__dict__", {}) | {"id": getattr(record, "id", "")}
    named = (fields.get(name) for name in ("name", "node_name", "id", "uid"))
    found = next((str(name) for name in named if name), "a record without a name")
    return found if found.isprintable() else repr(found)


def find_tag(text: str | None) -> str:
    """Return the tag in a text, or ''."""
    match = TAG.search(text or "")
    return match[0] if match else ""


def find_owner(text: str | None) -> str:
    """Return the user's id in a label (Cloud.owner_label), or ''."""
    match = OWNER.search(text or "")
    return match[1] if match else ""
