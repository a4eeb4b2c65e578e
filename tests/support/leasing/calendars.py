"""Hosts and bookings for tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from provision.models import Booking, Host

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def a100(name: str, **overrides: Any) -> Host:
    """Return a node with 4 x A100 80GB."""
    spec: dict[str, Any] = {"site": "CHI@UC", "node_type": "gpu_a100_pcie", "gpu_model": "NVIDIA A100", "gpus": 4}
    return Host(
        name, name, **{**spec, "gpu_memory_gib": 80.0, "interconnect": "PCIe", "su_per_hour": 16.0, **overrides}
    )


def gigaio(name: str, gpus: int = 1, **overrides: Any) -> Host:
    """Return a node of type compute_gigaio; nodes of this type have different GPUs."""
    model: dict[str, Any] = {"gpu_model": "NVIDIA A100", "gpu_memory_gib": 80.0} if gpus else {}
    return Host(name, name, "CHI@UC", "compute_gigaio", gpus=gpus, **{"su_per_hour": 4.0, **model, **overrides})


def booked(host: Host, start: datetime, end: datetime) -> Booking:
    return Booking(host.id, start, end)


def at(hour: int, minute: int = 0, day: int = 0) -> datetime:
    """Return a time in the week that begins on MONDAY."""
    return MONDAY + day * 24 * HOUR + hour * HOUR + minute * MINUTE
