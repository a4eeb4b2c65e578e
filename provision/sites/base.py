"""Sites that lease machines: their interface, and functions that connect to a site by its name.

Every method may raise a SiteError; Unreachable means that the outcome is unknown. A method that lists resources returns
all resources of the project at the site, but of SSH keys and credentials only the user's own. Only the reconciler calls
the methods that create or delete, so that each call is in the journal. Deleting a resource that no longer exists is not
an error.
"""

from datetime import timedelta
from importlib import import_module
from typing import Protocol, runtime_checkable

from provision.choices import DEMO, DEMO_PREFIX, LEASING_SITES, REGION_PREFIXES, VM_SITE
from provision.errors import UnknownSite
from provision.models import (
    Address,
    Booking,
    Credential,
    Host,
    Identity,
    Lease,
    LeaseCredential,
    Server,
    TaggedResource,
    TimeSlot,
    Volume,
)
from provision.ssh.login import Login


class Account(Protocol):
    """The user's account at a site and its limits."""

    name: str
    """The site's region."""

    def user(self) -> str:
        """Return the user's name."""
        ...

    def user_id(self) -> str:
        """Return the user's id, which is the ``owner`` of the user's resources."""
        ...

    def identity(self) -> Identity:
        """Return user, project and region of the account. Raises NoCredentials if the account is unusable."""
        ...

    def credential(self) -> Credential:
        """Return whether the account's credential may create leases, and until when it is valid."""
        ...

    def clock_skew(self) -> timedelta:
        """Return how far the site's clock is ahead of the local clock."""
        ...

    def check_quota(self) -> str:
        """Return the project's used and allowed servers in words. Raises RequestRejected if the quota is used up."""
        ...

    def service_units_in_words(self) -> str:
        """Return the project's balance of service units in words."""
        ...

    def addresses_left(self) -> int | None:
        """Return how many more floating IPs the project may allocate; None if there is no limit."""
        ...

    def public_keys(self) -> list[tuple[str, str]]:
        """Return name and text of the user's SSH keys at the site."""
        ...


class Reservations(Protocol):
    """Hosts, their reservations, and the project's leases.

    listing_delay_s: seconds after the creation of a lease, after which the site lists all leases that were created in
    the same second.
    """

    listing_delay_s: float

    def hosts(self) -> list[Host]:
        """Return the reservable hosts."""
        ...

    def bookings(self) -> list[Booking]:
        """Return everybody's reservations of the hosts."""
        ...

    def leases(self) -> list[Lease]:
        """Return the project's leases."""
        ...

    def create_lease(self, name: str, tag: str, slot: TimeSlot) -> Lease:
        """Reserve the hosts of ``slot``. Raises NotEnoughHosts if somebody else has reserved one of them."""
        ...

    def extend_lease(self, lease: Lease, slot: TimeSlot) -> Lease:
        """Change the end of the lease to the end of ``slot``. Raises ExtensionRejected."""
        ...

    def delete_lease(self, lease: Lease) -> None:
        """Delete the lease."""
        ...


class Servers(Protocol):
    """Servers on leased hosts."""

    boot_limit_s: float
    """Maximum time for booting a server, seconds."""

    def image_id(self, name: str) -> str:
        """Return the UUID of the disk image of that name. The site replaces images, so the UUID changes over time.

        Raises RequestRejected if there is none, if it is not active, or if several images have that name.
        """
        ...

    def check_boot_requirements(self) -> str:
        """Return in words the networks and the flavor that a server needs. Raises RequestRejected if one is missing."""
        ...

    def servers(self) -> list[Server]:
        """Return the project's servers."""
        ...

    def create_server(self, name: str, tag: str, reservation_id: str, source: str) -> Server:
        """Create a server in a reservation. source: id of the disk image or volume that the server boots from."""
        ...

    def delete_server(self, server: Server) -> None:
        """Delete the server."""
        ...


class Access(Protocol):
    """SSH keys and floating IPs, by which servers are reached."""

    def keys(self) -> list[TaggedResource]:
        """Return the user's tagged SSH keys at the site."""
        ...

    def upload_key(self, tag: str, public_key: str) -> TaggedResource:
        """Upload an SSH key, named by its tag."""
        ...

    def delete_key(self, key: TaggedResource) -> None:
        """Delete the key at the site."""
        ...

    def addresses(self) -> list[Address]:
        """Return the project's floating IPs."""
        ...

    def allocate_address(self, tag: str) -> Address:
        """Allocate a floating IP to the project. Raises NoAddress if none is free."""
        ...

    def attach_address(self, address: Address, server: Server) -> Address:
        """Attach the address to the server. Raises RequestRejected if the address is attached to another server."""
        ...

    def release_address(self, address: Address) -> None:
        """Return the address to the site's pool."""
        ...


class LeasingSite(Account, Reservations, Servers, Access, Protocol):
    """Interface that every site implements. Capabilities that only some sites have are separate protocols."""


@runtime_checkable
class SecurityGroups(Protocol):
    """A site whose servers cannot be reached until a security group admits connections."""

    def security_groups(self) -> list[TaggedResource]:
        """Return the project's tagged security groups. ``complete`` is False for a group without the rule for SSH."""
        ...

    def create_security_group(self, tag: str) -> TaggedResource:
        """Create the security group that is named by the tag and admits SSH; add the rule if only the group exists."""
        ...

    def delete_security_group(self, group: TaggedResource) -> None:
        """Delete the security group."""
        ...


@runtime_checkable
class BootVolumes(Protocol):
    """A site whose servers boot from a volume with a copy of the disk image."""

    def volumes(self) -> list[Volume]:
        """Return the project's volumes."""
        ...

    def create_volume(self, name: str, tag: str, image_id: str) -> Volume:
        """Create a volume with a copy of the disk image. It is deleted with the server that boots from it."""
        ...

    def delete_volume(self, volume: Volume) -> None:
        """Delete the volume."""
        ...


@runtime_checkable
class CredentialIssuer(Protocol):
    """A site with credentials that may only read and delete one lease."""

    def lease_credentials(self) -> list[TaggedResource]:
        """Return the user's credentials that are named by a tag."""
        ...

    def create_lease_credential(self, tag: str, lease: Lease) -> LeaseCredential:
        """Create a lease's credential, which is named by the tag and expires with the lease; delete an earlier one."""
        ...

    def delete_lease_credential(self, credential: TaggedResource) -> None:
        """Delete the credential."""
        ...

    def try_lease_credential(self) -> None:
        """Test the site: create a credential for one lease, use it and delete it.

        Raises RequestRejected if the site does not support such credentials.
        """
        ...


@runtime_checkable
class SimulatedServers(Protocol):
    """A site that only simulates servers: nobody can log in to them, configure them, or run rows on them."""

    def try_login(self, login: Login) -> None:
        """Do nothing, in place of a login to a server."""
        ...


def is_demo(name: str) -> bool:
    """Return whether ``name`` is the name of the simulated site or of its region."""
    return name == DEMO or name.startswith(DEMO_PREFIX)


def is_virtual(name: str) -> bool:
    """Return whether ``name`` is the name of a site or a region that has virtual machines."""
    return name == VM_SITE or name.startswith(REGION_PREFIXES[VM_SITE])


def connect_to_all() -> list[LeasingSite]:
    """Connect to the region of every configured account. Raises NoCredentials if there is none."""
    regions = import_module("provision.sites.accounts").account_regions()
    known = [region for region in regions if region.startswith(tuple(REGION_PREFIXES.values()))]
    return [connect_to(region) for region in known] or [connect_to("chameleon")]


def connect_to(name: str, entry: str = "") -> LeasingSite:
    """Connect to a site by its name, or by a region such as CHI@TACC.

    entry: the account to prefer if several match. Raises UnknownSite, and NoCredentials if no account or several
    accounts match.
    """
    if is_demo(name):
        return import_module("provision.sites.demo").connect()
    kind = next((kind for kind, prefix in REGION_PREFIXES.items() if name.startswith(prefix)), name)
    if kind not in LEASING_SITES:
        raise UnknownSite(
            f"unknown site {name!r}; allowed: {', '.join((*LEASING_SITES, DEMO))}, or a region such as CHI@UC"
        )
    return import_module(LEASING_SITES[kind]).connect(name if kind != name else REGION_PREFIXES[kind], entry)
