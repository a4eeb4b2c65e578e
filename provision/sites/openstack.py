"""Common code of Chameleon's OpenStack sites: account, leases, servers, SSH keys, addresses.

OpenStack's services are keystone (logins), Blazar (reservations), nova (servers and SSH keys), neutron (networks and
floating IPs), glance (disk images) and cinder (volumes).

python-chi provides Chameleon's endpoints and the format of reservations. The wait functions of python-chi treat ERROR
as success, so this module calls the underlying clients directly, in a session with timeouts. openstacksdk reads OS_*
variables and clouds.yaml, including application credentials; python-chi reads only the variables.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openstack
from blazarclient.client import Client as Blazar
from chi import clients, context
from openstack.config.cloud_region import CloudRegion

from provision.availability.times import MINUTE
from provision.errors import (
    ExtensionRejected,
    NoAddress,
    NoCredentials,
    NotEnoughHosts,
    RequestRejected,
    Unreachable,
)
from provision.models import (
    TAG,
    Address,
    Booking,
    Credential,
    Host,
    Identity,
    Lease,
    Server,
    TaggedResource,
    TimeSlot,
)
from provision.sites.credentials import KeystoneCredentialIssuer
from provision.sites.faults import translate_errors
from provision.sites.records import (
    CONVERSION_ERRORS,
    may_be_own_record,
    parse_blazar_time,
    record_name,
    sorted_by_id,
    to_address,
    to_lease,
    to_server,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

logging.getLogger("stevedore").setLevel(logging.CRITICAL)
"""Hide the library's warnings about optional login plugins that are not installed."""

PUBLIC_NETWORK = "public"
TOKEN_PLUGINS = ("token", "v3token")
"""Login plugins whose credential is a token, which expires."""
REQUEST_TIMEOUT_S = 60
"""Timeout of a request, seconds."""
BLAZAR_TIME_FORMAT = "%Y-%m-%d %H:%M"


class Cloud(KeystoneCredentialIssuer, ABC):
    """A connection to one region: the common code of bare metal and KVM."""

    boot_limit_s: float
    listing_delay_s = 2.0  # Blazar rounds times of creation to full seconds, and lists a lease within another second

    def __init__(self, cloud: CloudRegion) -> None:
        self.name, self.entry = str(cloud.region_name), str(cloud.name)
        self._logged_faults: set[str] = set()
        self._renewable = cloud.config.get("auth_type") not in TOKEN_PLUGINS
        session: Any = cloud.get_session()
        session.timeout = REQUEST_TIMEOUT_S
        self.sdk = openstack.connection.Connection(config=cloud, compute_api_version=clients.NOVA_API_VERSION)
        self.blazar = Blazar("1", session=session, service_type="reservation", region_name=self.name)
        self.session = session

    def convert_records(
        self, service: str, records: Iterable[Any], convert: Callable[[Any], T], owner_in_log: str = "somebody else's"
    ) -> list[T]:
        """Return the converted records of a service. Skip unreadable records of others, and log each of them once.

        owner_in_log: who owns a skipped record, in the words of the log: "skipped, because it is somebody else's".
        Raises Unreachable for an unreadable record that may be of this program's resources.
        """
        return [result for record in records for result in self._convert_record(service, record, convert, owner_in_log)]

    def _convert_record(self, service: str, record: Any, convert: Callable[[Any], T], owner_in_log: str) -> list[T]:
        """Return a list with the converted record; [] for an unreadable record that is skipped."""
        try:
            return [convert(record)]
        except CONVERSION_ERRORS as problem:
            fault = f"{service}: {record_name(record)} cannot be read ({problem})"
        if may_be_own_record(record, self.user_id()):
            raise Unreachable(f"{fault}; the site may still be creating it")
        if fault not in self._logged_faults:
            log.warning("%s; skipped, because it is %s", fault, owner_in_log)
        self._logged_faults.add(fault)
        return []

    def user(self) -> str:
        """Return the user's name."""
        with translate_errors("keystone"):
            return self.session.auth.get_access(self.session).username

    def user_id(self) -> str:
        """Return the user's id."""
        with translate_errors("keystone"):
            return self.session.get_user_id()

    def owner_label(self, tag: str) -> str:
        """Return a text with tag and user id: the description of resources whose creator the site does not record."""
        return f"{tag} of {self.user_id()}"

    def identity(self) -> Identity:
        """Return user, project and region of the account."""
        with translate_errors("keystone"):
            access = self.session.auth.get_access(self.session)
        if not access.project_id:
            raise NoCredentials(
                "credentials: no project is selected; "
                "set OS_PROJECT_NAME to a project that the site's web dashboard lists"
            )
        user_and_project = access.username, access.user_id, access.project_name, access.project_id
        address = urlsplit(str(self.session.auth.auth_url))
        endpoint = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
        return Identity(*user_and_project, endpoint=endpoint, region=self.name, entry=self.entry)

    def credential(self) -> Credential:
        """Return what the credential allows. An application credential may expire; a token always expires."""
        with translate_errors("keystone"):
            access = self.session.auth.get_access(self.session)
        if not access.application_credential_id:
            return Credential(expires_at=None if self._renewable else access.expires)
        restricted = bool(access.application_credential.get("restricted"))
        return Credential(restricted, self._expiry(access.user_id, access.application_credential_id))

    def _expiry(self, user_id: str, application_credential_id: str) -> datetime | None:
        """Return when an application credential expires; None if it never does, or if keystone does not report this."""
        keystone: Any = self.sdk.identity
        try:
            with translate_errors("keystone"):
                expires_at = keystone.get_application_credential(user_id, application_credential_id).expires_at
        except RequestRejected:
            return None
        return datetime.fromisoformat(expires_at).replace(tzinfo=UTC) if expires_at else None

    def clock_skew(self) -> timedelta:
        """Return how far keystone's clock is ahead of the local clock."""
        with translate_errors("keystone"):
            keystone = self.session.get_endpoint(service_type="identity", region_name=self.name)
            response = self.session.get(keystone, authenticated=False)
        return parsedate_to_datetime(response.headers["Date"]) - datetime.now(UTC)

    def check_quota(self) -> str:
        """Return the project's used and allowed servers in words. Raises RequestRejected if none is left."""
        with translate_errors("nova"):
            limits = self.sdk.compute.get_limits().absolute
        used, maximum = limits.instances_used or 0, limits.instances
        if maximum is not None and 0 <= maximum <= used:
            raise RequestRejected(
                f"nova: the project has {used} of {maximum} servers; delete a server, or ask the site's help desk"
            )
        return f"{used} of {maximum} servers are used"

    def service_units_in_words(self) -> str:
        """Return a note on where to find the balance, because OpenStack does not store it."""
        return "not reported by the site's services; see the project's page at chameleoncloud.org"

    def addresses_left(self) -> int | None:
        """Return how many more floating IPs the project may allocate; None if there is no limit."""
        with translate_errors("neutron"):
            quota = self.sdk.network.get_quota(self.session.get_project_id(), details=True).floating_ips
        return None if quota["limit"] < 0 else quota["limit"] - quota["used"]

    def public_keys(self) -> list[tuple[str, str]]:
        """Return name and text of the user's SSH keys at the site."""
        with translate_errors("nova"):
            return [(key.name, key.public_key or "") for key in self.sdk.compute.keypairs()]

    def bookings(self) -> list[Booking]:
        """Return everybody's reservations of the hosts."""
        return self.convert_records("blazar", self.allocations(), _to_booking)

    def allocations(self) -> list[tuple[str, dict[str, Any]]]:
        """Return everybody's reservations in Blazar's format, each with the id of the reserved host."""
        with translate_errors("blazar"):
            listed = self.blazar.allocation.list("os-hosts")
        per_host = self.convert_records("blazar", listed, lambda host: (str(host["resource_id"]), host["reservations"]))
        return [(host_id, booked) for host_id, reservations in per_host for booked in reservations]

    def image_id(self, name: str) -> str:
        """Return the UUID of the active disk image of that name; of several, the UUID of the only public image.

        Raises RequestRejected if there is no such image, or more than one.
        """
        with translate_errors("glance"):
            found = list(self.sdk.image.images(name=name))
        active = [image for image in found if image.status == "active"]
        public = [image for image in active if image.visibility == "public"]
        chosen = public if len(active) > 1 and public else active
        if len(chosen) == 1:
            return str(chosen[0].id)
        listed = ", ".join(f"{image.id} ({image.visibility}, {image.status})" for image in found)
        if chosen:
            raise RequestRejected(
                f"{len(chosen)} images at {self.name} have the name {name}: {listed}; delete or rename yours"
            )
        state = f"is not active: {listed}" if found else "does not exist"
        raise RequestRejected(f"image {name} at {self.name} {state}; choose another with --image, or ask the help desk")

    def check_boot_requirements(self) -> str:
        """Return in words the networks that servers need. Raises RequestRejected if the site lacks one."""
        for network in (context.DEFAULT_NETWORK, PUBLIC_NETWORK):
            self._network_id(network)
        return f"networks {context.DEFAULT_NETWORK} and {PUBLIC_NETWORK}"

    def leases(self) -> list[Lease]:
        """Return the project's leases."""
        with translate_errors("blazar"):
            listed = self.blazar.lease.list()
        reserved_hosts = {booked["id"]: host_id for host_id, booked in self.allocations()}
        return self.convert_records(
            "blazar", listed, lambda lease: to_lease(lease, self.host_ids(lease, reserved_hosts))
        )

    def host_ids(self, lease: dict[str, Any], reserved_hosts: dict[str, str]) -> tuple[str, ...]:
        """Return the ids of the lease's hosts. reserved_hosts: id of the reserved host by reservation id."""
        ids = (reservation["id"] for reservation in sorted_by_id(lease["reservations"]))
        return tuple(reserved_hosts[id] for id in ids if id in reserved_hosts)

    def create_lease(self, name: str, tag: str, slot: TimeSlot) -> Lease:
        """Reserve the hosts of ``slot``; a slot that begins within a minute begins at once."""
        at_once = slot.start - datetime.now(UTC) <= MINUTE
        start = "now" if at_once else f"{slot.start.astimezone(UTC):{BLAZAR_TIME_FORMAT}}"
        end = f"{slot.end.astimezone(UTC):{BLAZAR_TIME_FORMAT}}"
        with translate_errors("blazar"):
            created = self.blazar.lease.create(self.lease_name(name, tag), start, end, self.reservations(tag, slot), [])
        return to_lease(created, tuple(host.id for host in slot.hosts))

    def lease_name(self, name: str, tag: str) -> str:
        """Return the lease's name at the site, which contains the tag if a lease has no other field for the tag."""
        return name

    @abstractmethod
    def hosts(self) -> list[Host]:
        """Return the reservable hosts."""

    @abstractmethod
    def reservations(self, tag: str, slot: TimeSlot) -> list[dict[str, Any]]:
        """Return the reservations of a lease of ``slot`` in Blazar's format."""

    def extend_lease(self, lease: Lease, slot: TimeSlot) -> Lease:
        """Change the end of the lease to the end of ``slot``. Raises ExtensionRejected."""
        try:
            with translate_errors("blazar"):
                extended = self.blazar.lease.update(
                    lease.id, end_date=f"{slot.end.astimezone(UTC):{BLAZAR_TIME_FORMAT}}"
                )
        except (NotEnoughHosts, RequestRejected) as problem:
            raise ExtensionRejected(str(problem)) from None
        return to_lease(extended, lease.hosts)

    def delete_lease(self, lease: Lease) -> None:
        """Delete the lease."""
        with translate_errors("blazar", ignore_missing_resource=True):
            self.blazar.lease.delete(lease.id)

    def servers(self) -> list[Server]:
        """Return the project's servers."""
        with translate_errors("nova"):
            return self.convert_records("nova", self.sdk.compute.servers(), to_server)

    def create_server(self, name: str, tag: str, reservation_id: str, source: str) -> Server:
        """Create a server in a reservation. source: id of the disk image or volume that the server boots from."""
        with translate_errors("nova"):
            created = self.sdk.compute.create_server(
                name=name,
                key_name=tag,
                metadata={"llm-testbed": tag},
                networks=[{"uuid": self._network_id(context.DEFAULT_NETWORK)}],
                **self.server_options(tag, reservation_id, source),
            )
            return to_server(self.sdk.compute.get_server(created.id))

    @abstractmethod
    def server_options(self, tag: str, reservation_id: str, source: str) -> dict[str, Any]:
        """Return a server's reservation and boot source in nova's format."""

    def delete_server(self, server: Server) -> None:
        """Delete the server."""
        with translate_errors("nova"):
            self.sdk.compute.delete_server(server.id)

    def keys(self) -> list[TaggedResource]:
        """Return the user's tagged SSH keys at the site."""
        with translate_errors("nova"):
            return [
                TaggedResource(key.name, "key", key.name, self.user_id())
                for key in self.sdk.compute.keypairs()
                if TAG.fullmatch(key.name)
            ]

    def upload_key(self, tag: str, public_key: str) -> TaggedResource:
        """Upload an SSH key, named by its tag."""
        with translate_errors("nova"):
            self.sdk.compute.create_keypair(name=tag, public_key=public_key)
        return TaggedResource(tag, "key", tag, self.user_id())

    def delete_key(self, key: TaggedResource) -> None:
        """Delete the key at the site."""
        with translate_errors("nova"):
            self.sdk.compute.delete_keypair(key.id)

    def addresses(self) -> list[Address]:
        """Return the project's floating IPs."""
        with translate_errors("neutron"):
            servers = {port.id: port.device_id for port in self.sdk.network.ports()}
            listed = list(self.sdk.network.ips(project_id=self.session.get_project_id()))
        return self.convert_records(
            "neutron", listed, lambda ip: to_address(ip, servers.get(ip.port_id, ip.port_id or ""))
        )

    def allocate_address(self, tag: str) -> Address:
        """Allocate a floating IP to the project. Raises NoAddress if none is free."""
        try:
            with translate_errors("neutron"):
                network = self._network_id(PUBLIC_NETWORK)
                created = self.sdk.network.create_ip(floating_network_id=network, description=self.owner_label(tag))
                return to_address(created, "")
        except RequestRejected as problem:
            raise NoAddress(f"no floating IP is free at {self.name}: {problem}") from None

    def attach_address(self, address: Address, server: Server) -> Address:
        """Attach the address to the server. Raises RequestRejected if the address is attached to another server."""
        with translate_errors("neutron"):
            ip = self.sdk.network.get_ip(address.id)
            port = next(iter(self.sdk.network.ports(device_id=server.id)), None)
            if port is None:
                raise Unreachable(f"neutron: server {server.name} has no port yet")
            if ip.port_id not in (None, port.id):
                raise RequestRejected(f"neutron: {address.ip} is attached to another server")
            self.sdk.network.update_ip(ip, if_revision=ip.revision_number, port_id=port.id)
        return replace(address, server=server.id)

    def release_address(self, address: Address) -> None:
        """Return the address to the site's pool."""
        with translate_errors("neutron"):
            self.sdk.network.delete_ip(address.id)

    def _network_id(self, name: str) -> str:
        with translate_errors("neutron"):
            network = self.sdk.network.find_network(name)
        if network is None:
            raise RequestRejected(f"network {name} does not exist at {self.name}; ask the site's help desk for it")
        return str(network.id)


def _to_booking(allocation: tuple[str, dict[str, Any]]) -> Booking:
    host_id, reservation = allocation
    return Booking(host_id, parse_blazar_time(reservation["start_date"]), parse_blazar_time(reservation["end_date"]))
