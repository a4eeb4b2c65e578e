"""Virtual machines with GPUs at KVM@TACC. They boot from volumes, and a security group admits SSH.

Blazar reserves instances of flavors: virtual machines of one type, several on one hypervisor. For leases of other
projects, Blazar does not show which flavor is reserved. So a reservation of another project counts as a reservation of
the whole hypervisor. The search may therefore miss a free time slot, but never reports an occupied one.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

from provision.models import Booking, Host, TaggedResource, TimeSlot, Volume
from provision.sites.accounts import find_account
from provision.sites.faults import translate_errors
from provision.sites.openstack import Cloud
from provision.sites.records import find_owner, find_tag, parse_blazar_time, sorted_by_id
from provision.sites.reference_api import SERVICE, gpu_fields, reference_items, text_field

VOLUME_GIB = 200
"""Size of a server's boot volume. The flavors' own disks (40 GB) are too small for models and containers."""
RESERVATION_TYPE = "flavor:instance"
SSH_RULE = {"direction": "ingress", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22}


class Kvm(Cloud):
    """The site of virtual machines."""

    boot_limit_s = 15 * 60

    def hosts(self) -> list[Host]:
        """Return a host for each pair of a flavor with GPUs and a reservable hypervisor."""
        described, flavors = reference_items("sites/kvm/flavors"), self._flavor_ids()
        hosts = [
            self.convert_records(SERVICE, described, partial(_make_host, self.name, hypervisor), "the site's")
            for hypervisor in self._hypervisors()
        ]
        return [host for on_hypervisor in hosts for host in on_hypervisor if host.gpus and host.node_type in flavors]

    def bookings(self) -> list[Booking]:
        """Return the periods in which a hypervisor has fewer free GPUs than the flavor needs."""
        hosts, allocations = self.hosts(), self.allocations()
        gpus_of_flavor = {host.node_type: host.gpus for host in hosts}
        most_gpus = max(gpus_of_flavor.values(), default=0)
        reserved_gpus = {
            id: amount * gpus_of_flavor.get(flavor, most_gpus)
            for id, (flavor, amount) in self._reserved_flavors().items()
        }
        reserved = defaultdict(list)
        for hypervisor, booked in allocations:
            period = parse_blazar_time(booked["start_date"]), parse_blazar_time(booked["end_date"])
            reserved[hypervisor].append((*period, reserved_gpus.get(booked["id"], most_gpus)))
        return [
            Booking(host.id, begin, end)
            for host in hosts
            for begin, end in periods_above(most_gpus - host.gpus, reserved[host.id.partition("@")[2]])
        ]

    def lease_name(self, name: str, tag: str) -> str:
        """Return the name with the tag, because a lease with reservations of flavors has no other field for the tag."""
        return f"{name} {tag}"

    def reservations(self, tag: str, slot: TimeSlot) -> list[dict[str, Any]]:
        """Return a reservation of one instance of each host's flavor, in Blazar's format."""
        flavors = self._flavor_ids()
        return [
            {"resource_type": RESERVATION_TYPE, "flavor_id": flavors[host.node_type], "amount": 1, "affinity": None}
            for host in slot.hosts
        ]

    def server_options(self, tag: str, reservation_id: str, source: str) -> dict[str, Any]:
        """Return the options of a server that boots from the volume, with the security group of the tag."""
        volume = {
            "boot_index": 0,
            "source_type": "volume",
            "uuid": source,
            "destination_type": "volume",
            "delete_on_termination": True,
        }
        return {
            "flavor_id": reservation_id,
            "block_device_mapping": [volume],
            "security_groups": [{"name": tag}],
        }

    def volumes(self) -> list[Volume]:
        """Return the project's volumes."""
        with translate_errors("cinder"):
            return self.convert_records("cinder", self.sdk.block_storage.volumes(), _to_volume)

    def create_volume(self, name: str, tag: str, image_id: str) -> Volume:
        """Create a volume with a copy of the disk image."""
        with translate_errors("cinder"):
            created = self.sdk.block_storage.create_volume(
                name=name, description=self.owner_label(tag), size=VOLUME_GIB, image_id=image_id
            )
        return _to_volume(created)

    def delete_volume(self, volume: Volume) -> None:
        """Delete the volume."""
        with translate_errors("cinder"):
            self.sdk.block_storage.delete_volume(volume.id)

    def security_groups(self) -> list[TaggedResource]:
        """Return the project's tagged security groups. ``complete`` is False for a group without the rule for SSH."""
        with translate_errors("neutron"):
            groups = list(self.sdk.network.security_groups(project_id=self.session.get_project_id()))
        tagged = [group for group in groups if find_tag(group.name)]
        return self.convert_records("neutron", tagged, lambda group: _to_tagged_resource(group, find_tag(group.name)))

    def create_security_group(self, tag: str) -> TaggedResource:
        """Create a security group that admits only SSH, from everywhere; add the rule if only the group exists."""
        existing = next((group.id for group in self.security_groups() if group.tag == tag), None)
        with translate_errors("neutron"):
            group = existing or self.sdk.network.create_security_group(name=tag, description=self.owner_label(tag)).id
            self.sdk.network.create_security_group_rule(security_group_id=group, ether_type="IPv4", **SSH_RULE)
        return TaggedResource(group, "security group", tag, self.user_id())

    def delete_security_group(self, group: TaggedResource) -> None:
        """Delete the security group."""
        with translate_errors("neutron"):
            self.sdk.network.delete_security_group(group.id)

    def host_ids(self, lease: dict[str, Any], reserved_hosts: dict[str, str]) -> tuple[str, ...]:
        """Return the ids of the hosts: pairs of a flavor and a hypervisor."""
        reserved = sorted_by_id(_reservations_of(lease))
        return tuple(
            f"{_flavor_name(reservation)}@{reserved_hosts[reservation['id']]}"
            for reservation in reserved
            if reservation["id"] in reserved_hosts
        )

    def _reserved_flavors(self) -> dict[str, tuple[str, int]]:
        """Return flavor and number of virtual machines of each reservation of the project, by reservation id."""
        with translate_errors("blazar"):
            leases = self.blazar.lease.list()
        per_lease = self.convert_records("blazar", leases, _flavors_in)
        return {id: reserved for flavors in per_lease for id, reserved in flavors.items()}

    def _flavor_ids(self) -> dict[str, str]:
        """Return the flavors' ids by name."""
        with translate_errors("nova"):
            return {flavor.name: flavor.id for flavor in self.sdk.compute.flavors()}

    def _hypervisors(self) -> list[str]:
        with translate_errors("blazar"):
            return [str(host["id"]) for host in self.blazar.host.list() if host.get("reservable", True)]


def connect(region: str, entry: str = "") -> Kvm:
    """Connect to the configured region whose name begins with ``region``. entry: preferred entry of clouds.yaml."""
    return Kvm(find_account(region, entry))


def _to_volume(volume: Any) -> Volume:
    text = volume.description
    return Volume(volume.id, volume.name or "", volume.status, find_tag(text), find_owner(text))


def periods_above(limit: int, reserved: Sequence[tuple[datetime, datetime, int]]) -> list[tuple[datetime, datetime]]:
    """Return the periods in which reservations of more than ``limit`` in total overlap.

    reserved: begin, end and amount of each reservation.
    """
    moments = sorted({moment for begin, end, _ in reserved for moment in (begin, end)})
    return [
        (first, last)
        for first, last in pairwise(moments)
        if sum(amount for begin, end, amount in reserved if begin <= first < end) > limit
    ]


def _reservations_of(lease: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the flavor reservations of a lease."""
    return [reservation for reservation in lease["reservations"] if reservation["resource_type"] == RESERVATION_TYPE]


def _flavors_in(lease: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Return flavor and number of virtual machines of each flavor reservation of a lease, by reservation id."""
    return {
        reservation["id"]: (_flavor_name(reservation), reservation["amount"]) for reservation in _reservations_of(lease)
    }


def _flavor_name(reservation: dict[str, Any]) -> str:
    """Return the flavor's name: Blazar stores a copy of the flavor in resource_properties."""
    return str(json.loads(reservation["resource_properties"])["name"])


def _to_tagged_resource(group: Any, tag: str) -> TaggedResource:
    complete = any(rule.items() >= SSH_RULE.items() for rule in group.security_group_rules)
    return TaggedResource(group.id, "security group", tag, find_owner(group.description), complete)


def _make_host(site: str, hypervisor: str, flavor: dict[str, Any]) -> Host:
    price, name = flavor.get("su_cost_per_hour"), text_field(flavor, "uid")
    return Host(
        id=f"{name}@{hypervisor}",
        name=f"{name}@{hypervisor}",
        site=site,
        node_type=name,
        su_per_hour=float(price) if price is not None else None,
        is_flavor=True,
        **gpu_fields(flavor, name),
    )
