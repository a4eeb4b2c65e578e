"""Sites: places where machines come from. Found by name, and loaded only when asked for."""

from datetime import timedelta
from importlib import import_module
from typing import Protocol

from provision.errors import UnknownSite
from provision.models import Address, Booking, Host, Lease, Server, TaggedResource, TimeSlot, Volume

TESTBEDS = {"chameleon": "provision.sites.bare_metal", "kvm": "provision.sites.kvm"}
REGIONS = {"chameleon": "CHI@", "kvm": "KVM@"}
"""How the names of their regions begin."""


class Testbed(Protocol):
    """A site whose machines are leased. Everything may raise a SiteError; Unreachable where the outcome is not known.

    Lists are what the site has of one's own project, keys of one's own user. What creates or deletes is done by acts of
    the ledger alone. What is gone already is deleted without complaint.
    """

    name: str
    boot_limit_s: float
    """How long a server may take to boot."""
    opens_ssh: bool
    """Whether SSH has to be let through to servers."""
    boots_from_volume: bool
    """Whether a server boots from a volume of its own, not from an image."""

    def user(self) -> str: ...

    def user_id(self) -> str:
        """What things of one's own have as their owner."""
        ...

    def scope(self) -> str:
        """User, project and region of the account, in words; NoCredentials where it is no good."""
        ...

    def skew(self) -> timedelta:
        """How far the site's clock is ahead of this one."""
        ...

    def quota(self) -> str:
        """Servers that the project has and may have, in words; Refused when it may have no more."""
        ...

    def service_units(self) -> str: ...

    def addresses_left(self) -> int | None: ...

    def public_keys(self) -> list[tuple[str, str]]: ...

    def hosts(self) -> list[Host]: ...

    def bookings(self) -> list[Booking]: ...

    def image_id(self) -> str:
        """The UUID of the disk image that servers boot from; it moves under its name."""
        ...

    def leases(self) -> list[Lease]: ...

    def create_lease(self, name: str, tag: str, slot: TimeSlot) -> Lease: ...

    def extend_lease(self, lease: Lease, slot: TimeSlot) -> Lease:
        """Move the lease's end to that of ``slot``."""
        ...

    def delete_lease(self, lease: Lease) -> None: ...

    def servers(self) -> list[Server]: ...

    def create_server(self, name: str, tag: str, resource: str, source: str) -> Server:
        """source: the id of the image, or of the volume, that it boots from."""
        ...

    def delete_server(self, server: Server) -> None: ...

    def volumes(self) -> list[Volume]: ...

    def create_volume(self, name: str, tag: str, image_id: str) -> Volume:
        """A volume with a copy of the image, which goes with the server that boots from it."""
        ...

    def delete_volume(self, volume: Volume) -> None: ...

    def keys(self) -> list[TaggedResource]: ...

    def upload_key(self, tag: str, public_key: str) -> TaggedResource: ...

    def delete_key(self, key: TaggedResource) -> None: ...

    def openings(self) -> list[TaggedResource]: ...

    def open_ssh(self, tag: str) -> TaggedResource:
        """Let SSH through to the servers of a mark; one opening of each mark, also where it was left half-made."""
        ...

    def close_ssh(self, opening: TaggedResource) -> None: ...

    def addresses(self) -> list[Address]: ...

    def allocate_address(self, tag: str) -> Address: ...

    def attach_address(self, address: Address, server: Server) -> Address: ...

    def release_address(self, address: Address) -> None: ...


def connect_to_all() -> list[Testbed]:
    """A connection to each testbed's region that there is an account for; NoCredentials where there is none."""
    regions = import_module("provision.sites.openstack").regions()
    known = [region for region in regions if region.startswith(tuple(REGIONS.values()))]
    return [connect_to(region) for region in known] or [connect_to("chameleon")]


def connect_to(name: str) -> Testbed:
    """A connection to the testbed of that name, or of that region, as CHI@TACC; NoCredentials without an account."""
    kind = next((kind for kind, prefix in REGIONS.items() if name.startswith(prefix)), name)
    if kind not in TESTBEDS:
        raise UnknownSite(f"unknown site {name!r}; allowed: {', '.join(TESTBEDS)}, or a region as CHI@UC")
    return import_module(TESTBEDS[kind]).connect(name if kind != name else REGIONS[kind])
