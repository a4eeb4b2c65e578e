"""What the OpenStack sites of Chameleon share: account, servers, keys, addresses, errors in this package's words.

python-chi says how Chameleon is addressed and how reservations are written. What it does not do, or only with waits
that take ERROR for success, is asked of the clients under it, in a session with time limits. OS_* variables and
clouds.yaml, application credentials too, are read by openstacksdk; python-chi knows the variables alone.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import openstack
import requests
from blazarclient.client import Client as Blazar
from blazarclient.exception import BlazarClientException
from chi import clients, context
from keystoneauth1 import exceptions as keystone_errors
from openstack import config
from openstack import exceptions as sdk_errors
from openstack.config.cloud_region import CloudRegion

from provision.availability.times import MINUTE
from provision.errors import ExtensionRefused, NoAddress, NoCredentials, NotEnough, Refused, SiteError, Unreachable
from provision.models import GIB, TAG, Address, Booking, Lease, Server, TaggedResource, TimeSlot
from provision.sites.records import address_of, by_id, lease_of, moment, server_of

logging.getLogger("stevedore").setLevel(logging.CRITICAL)
"""It complains of ways to log in that need libraries which are not installed and that nobody asked for."""

IMAGE = "CC-Ubuntu24.04-CUDA"
PUBLIC_NETWORK = "public"
REQUEST_S = 60
"""After so long without an answer a service counts as not answering."""
CREDENTIALS = "check OS_USERNAME and OS_PASSWORD, or the application credential in clouds.yaml"
FORBIDDEN = "ask the project's PI for the right, or the quota, to do this"
BLAZAR_MINUTES = "%Y-%m-%d %H:%M"
NOT_THERE = 404

MEMORY = re.compile(r"(\d+) ?G[iB]?B?\b")
INTERCONNECTS = {"nvlink": "NVLink", "sxm": "NVLink", "pcie": "PCIe", "pci": "PCIe"}


def account(region_prefix: str) -> CloudRegion:
    """The first account, of OS_* variables or clouds.yaml, for a region whose name begins so."""
    found = _accounts()
    for cloud in found:
        if (cloud.region_name or "").startswith(region_prefix):
            return cloud
    regions = ", ".join(sorted({cloud.region_name or "no region" for cloud in found})) or "none"
    raise NoCredentials(
        f"credentials: no account for a region {region_prefix}...; there are: {regions}; set OS_* variables by the "
        "site's RC file, or write a clouds.yaml with region_name"
    )


def regions() -> list[str]:
    """The regions that there is an account for."""
    return sorted({str(cloud.region_name) for cloud in _accounts() if cloud.region_name})


def _accounts() -> list[CloudRegion]:
    try:
        return list(config.OpenStackConfig(load_envvars=True).get_all())
    except (sdk_errors.ConfigException, keystone_errors.ClientException) as problem:
        raise NoCredentials(f"credentials: {_line(problem)}") from None


class Cloud:
    """A connection to one region, and what is the same there for bare metal and KVM."""

    def __init__(self, cloud: CloudRegion) -> None:
        self.name = str(cloud.region_name)
        session: Any = cloud.get_session()
        session.timeout = REQUEST_S
        self.sdk = openstack.connection.Connection(config=cloud, compute_api_version=clients.NOVA_API_VERSION)
        self.blazar = Blazar("1", session=session, service_type="reservation", region_name=self.name)
        self.session = session

    def user(self) -> str:
        with classified("keystone"):
            return self.session.auth.get_access(self.session).username

    def user_id(self) -> str:
        with classified("keystone"):
            return self.session.get_user_id()

    def label(self, tag: str) -> str:
        """A description that tells the mark and its owner, of what the site keeps no user of."""
        return f"{tag} of {self.user_id()}"

    def scope(self) -> str:
        """User, project and region of the account, in words."""
        with classified("keystone"):
            access = self.session.auth.get_access(self.session)
        if not access.project_name:
            raise NoCredentials("credentials: they choose no project; set OS_PROJECT_NAME, as the site's menu shows it")
        return f"{access.username} in project {access.project_name} at {self.name}"

    def skew(self) -> timedelta:
        """How far keystone's clock is ahead of this one."""
        with classified("keystone"):
            keystone = self.session.get_endpoint(service_type="identity", region_name=self.name)
            told = self.session.get(keystone, authenticated=False)
        return parsedate_to_datetime(told.headers["Date"]) - datetime.now(UTC)

    def quota(self) -> str:
        with classified("nova"):
            limits = self.sdk.compute.get_limits().absolute
        used, most = limits.instances_used or 0, limits.instances
        if most is not None and 0 <= most <= used:
            raise Refused(f"nova: the project has {used} of {most} servers; delete one, or ask the site's help desk")
        return f"{used} of {most} servers are used"

    def service_units(self) -> str:
        """OpenStack has no place for them; the portal shows the project's balance."""
        return "not told by the site's services; see the project's page at chameleoncloud.org"

    def addresses_left(self) -> int | None:
        """Floating IPs that the project may still take; None where there is no limit."""
        with classified("neutron"):
            quota = self.sdk.network.get_quota(self.session.get_project_id(), details=True).floating_ips
        return None if quota["limit"] < 0 else quota["limit"] - quota["used"]

    def public_keys(self) -> list[tuple[str, str]]:
        """Name and text of the SSH keys at the site."""
        with classified("nova"):
            return [(key.name, key.public_key or "") for key in self.sdk.compute.keypairs()]

    def bookings(self) -> list[Booking]:
        return [
            Booking(host_id, moment(booked["start_date"]), moment(booked["end_date"]))
            for host_id, booked in self.allocations()
        ]

    def allocations(self) -> list[tuple[str, dict[str, Any]]]:
        """Ids of Blazar's hosts, each with one of the reservations that book it."""
        with classified("blazar"):
            listed = self.blazar.allocation.list("os-hosts")
        return [(str(one["resource_id"]), booked) for one in listed for booked in one["reservations"]]

    def image_id(self) -> str:
        with classified("glance"):
            image = self.sdk.image.find_image(IMAGE)
        if image is None:
            raise Refused(f"image {IMAGE} is not at {self.name}; ask the site's help desk for it")
        return image.id

    def leases(self) -> list[Lease]:
        with classified("blazar"):
            listed = self.blazar.lease.list()
        taken = {booked["id"]: host_id for host_id, booked in self.allocations()}
        return [lease_of(lease, self.host_ids(lease, taken)) for lease in listed]

    def host_ids(self, lease: dict[str, Any], taken: dict[str, str]) -> tuple[str, ...]:
        """Ids of Host of what a lease has; ``taken``: Blazar's hosts by the ids of their reservations."""
        return tuple(taken[one["id"]] for one in by_id(lease["reservations"]) if one["id"] in taken)

    def create_lease(self, name: str, tag: str, slot: TimeSlot) -> Lease:
        at_once = slot.start - datetime.now(UTC) <= MINUTE
        start = "now" if at_once else f"{slot.start.astimezone(UTC):{BLAZAR_MINUTES}}"
        end = f"{slot.end.astimezone(UTC):{BLAZAR_MINUTES}}"
        with classified("blazar"):
            made = self.blazar.lease.create(self.lease_name(name, tag), start, end, self.reservations(tag, slot), [])
        return lease_of(made, tuple(host.id for host in slot.hosts))

    def lease_name(self, name: str, tag: str) -> str:
        """What a lease is called at the site: its name, with the mark where nothing else in the lease can hold it."""
        return name

    def reservations(self, tag: str, slot: TimeSlot) -> list[dict[str, Any]]:
        """What a lease of that slot reserves, as Blazar reads it."""
        raise NotImplementedError

    def extend_lease(self, lease: Lease, slot: TimeSlot) -> Lease:
        try:
            with classified("blazar"):
                longer = self.blazar.lease.update(lease.id, end_date=f"{slot.end.astimezone(UTC):{BLAZAR_MINUTES}}")
        except (NotEnough, Refused) as problem:
            raise ExtensionRefused(str(problem)) from None
        return lease_of(longer, lease.hosts)

    def delete_lease(self, lease: Lease) -> None:
        with classified("blazar", gone_is_fine=True):
            self.blazar.lease.delete(lease.id)

    def servers(self) -> list[Server]:
        with classified("nova"):
            return [server_of(server) for server in self.sdk.compute.servers()]

    def create_server(self, name: str, tag: str, resource: str, source: str) -> Server:
        with classified("nova"):
            made = self.sdk.compute.create_server(
                name=name,
                key_name=tag,
                metadata={"llm-testbed": tag},
                networks=[{"uuid": self._network(context.DEFAULT_NETWORK)}],
                **self.server_options(tag, resource, source),
            )
            return server_of(self.sdk.compute.get_server(made.id))

    def server_options(self, tag: str, resource: str, source: str) -> dict[str, Any]:
        """Where a server of that reservation runs, and from which image or volume it boots, as nova reads it."""
        raise NotImplementedError

    def delete_server(self, server: Server) -> None:
        with classified("nova"):
            self.sdk.compute.delete_server(server.id)

    def keys(self) -> list[TaggedResource]:
        with classified("nova"):
            return [
                TaggedResource(key.name, "key", key.name, self.user_id())
                for key in self.sdk.compute.keypairs()
                if TAG.fullmatch(key.name)
            ]

    def upload_key(self, tag: str, public_key: str) -> TaggedResource:
        with classified("nova"):
            self.sdk.compute.create_keypair(name=tag, public_key=public_key)
        return TaggedResource(tag, "key", tag, self.user_id())

    def delete_key(self, key: TaggedResource) -> None:
        with classified("nova"):
            self.sdk.compute.delete_keypair(key.id)

    def addresses(self) -> list[Address]:
        with classified("neutron"):
            servers = {port.id: port.device_id for port in self.sdk.network.ports()}
            listed = list(self.sdk.network.ips(project_id=self.session.get_project_id()))
        return [address_of(ip, servers.get(ip.port_id, ip.port_id or "")) for ip in listed]

    def allocate_address(self, tag: str) -> Address:
        try:
            with classified("neutron"):
                network = self._network(PUBLIC_NETWORK)
                made = self.sdk.network.create_ip(floating_network_id=network, description=self.label(tag))
                return address_of(made, "")
        except Refused as problem:
            raise NoAddress(f"no floating IP is free at {self.name}: {problem}") from None

    def attach_address(self, address: Address, server: Server) -> Address:
        """Lead the address to the server; Refused where another program took it in between."""
        with classified("neutron"):
            ip = self.sdk.network.get_ip(address.id)
            port = next(iter(self.sdk.network.ports(device_id=server.id)), None)
            if port is None:
                raise Unreachable(f"neutron: server {server.name} has no port yet")
            if ip.port_id not in (None, port.id):
                raise Refused(f"neutron: {address.ip} leads to another server")
            self.sdk.network.update_ip(ip, if_revision=ip.revision_number, port_id=port.id)
        return replace(address, server=server.id)

    def release_address(self, address: Address) -> None:
        with classified("neutron"):
            self.sdk.network.delete_ip(address.id)

    def _network(self, name: str) -> str:
        with classified("neutron"):
            return self.sdk.network.find_network(name, ignore_missing=False).id


def reference(path: str) -> list[dict[str, Any]]:
    """Items of Chameleon's reference API."""
    with classified("the reference API"):
        answer = requests.get(f"{context.RESOURCE_API_URL}/{path}.json", timeout=REQUEST_S)
        answer.raise_for_status()
        return answer.json()["items"]


def gpus(described: dict[str, Any], kind: str) -> dict[str, Any]:
    """A host's GPUs, as fields of Host, from what the reference API says of it; kind: its node type or flavor."""
    gpu = described.get("gpu") or {}
    gpu = gpu[0] if isinstance(gpu, list) else gpu
    if not gpu.get("gpu"):
        return {}
    model = str(gpu.get("gpu_model") or "")
    return {
        "gpu_model": model,
        "gpus": int(gpu.get("gpu_count") or 1),
        "gpu_memory_gib": _memory_gib(gpu, model),
        "interconnect": _interconnect(f"{model} {kind}"),
    }


def _memory_gib(gpu: dict[str, Any], model: str) -> float:
    """As the site states it, else as the model's name does; 0 where neither does."""
    if stated := gpu.get("gpu_memory"):
        return stated / GIB
    named = MEMORY.search(model)
    return float(named[1]) if named else 0.0


def _interconnect(words: str) -> str:
    """How the GPUs are joined, from the words of the model and the node type."""
    return next((name for word, name in INTERCONNECTS.items() if word in words.lower()), "")


@contextmanager
def classified(service: str, gone_is_fine: bool = False) -> Iterator[None]:
    """Tell what a client raises in this package's words, in a line and without secrets."""
    try:
        yield
    except SiteError:
        raise
    except (keystone_errors.Unauthorized, keystone_errors.MissingRequiredOptions) as problem:
        raise NoCredentials(f"credentials: keystone refuses them: {_line(problem)}; {CREDENTIALS}") from None
    except keystone_errors.ConnectionError as problem:
        raise Unreachable(f"{service} does not answer: {type(problem).__name__}") from None
    except (BlazarClientException, keystone_errors.ClientException, sdk_errors.SDKException) as problem:
        if not (gone_is_fine and _code(problem) == NOT_THERE):
            raise _said(service, problem) from None
    except requests.RequestException as problem:
        raise Unreachable(f"{service} does not answer: {type(problem).__name__}") from None


def _said(service: str, problem: Exception) -> SiteError:
    code, line = _code(problem), _line(problem)
    if "Not enough" in line and "host" in line.lower():
        return NotEnough(f"{service}: {line}")
    if code is None or code >= 500:
        return Unreachable(f"{service} has an error ({code or type(problem).__name__}): {line}")
    remedy = f"; {FORBIDDEN}" if code == requests.codes.forbidden else ""
    return Refused(f"{service} refuses ({code}): {line}{remedy}")


def _code(problem: Exception) -> int | None:
    code = getattr(problem, "status_code", None) or getattr(problem, "http_status", None)
    return code or getattr(problem, "kwargs", {}).get("code")


def _line(problem: Exception) -> str:
    """The first line of a message, without the addresses that the clients put in front of it."""
    text = str(problem).strip().partition("\n")[0]
    return re.sub(r"^.*Error for url: \S+,? ?|^ERROR: ", "", text)
