"""Virtual machines with GPUs at KVM@TACC: flavors reserved by Blazar, booted from a volume, SSH let through by a group.

The site shows whether a hypervisor is reserved, not how much of it. So a flavor has a place on each hypervisor, taken
while anything is reserved there: an early block may be missed, but none is told that is not free.
"""

import json
from dataclasses import replace
from typing import Any

from provision.model import Booking, Host, Marked, Slot
from provision.sites.cloud import Cloud, account, by_id, classified, gpus, mark_in, reference

VOLUME_GIB = 200
"""The flavors' own disks of 40 GB are too small for models and containers."""
SSH_PORT = 22


class Kvm(Cloud):
    """The site of virtual machines."""

    boot_limit_s = 15 * 60
    opens_ssh = True

    def hosts(self) -> list[Host]:
        """A host for each flavor with a GPU and each hypervisor that can be reserved."""
        described = reference("sites/kvm/flavors")
        return [
            _host(self.name, flavor, hypervisor)
            for flavor in described
            if flavor["name"] in self._flavors() and (flavor.get("gpu") or {}).get("gpu")
            for hypervisor in self._hypervisors()
        ]

    def bookings(self) -> list[Booking]:
        hosts = self.hosts()
        return [
            replace(booking, host_id=host.id)
            for booking in super().bookings()
            for host in hosts
            if host.id.endswith(f"@{booking.host_id}")
        ]

    def reservations(self, mark: str, slot: Slot) -> list[dict[str, Any]]:
        flavors = self._flavors()
        return [
            {"resource_type": "flavor:instance", "flavor_id": flavors[host.node_type], "amount": 1, "affinity": None}
            for host in slot.hosts
        ]

    def server_options(self, mark: str, resource: str, image_id: str) -> dict[str, Any]:
        volume = {
            "boot_index": 0,
            "source_type": "image",
            "uuid": image_id,
            "destination_type": "volume",
            "volume_size": VOLUME_GIB,
            "delete_on_termination": True,
        }
        return {
            "flavor_id": resource,
            "block_device_mapping": [volume],
            "security_groups": [{"name": mark}],
        }

    def openings(self) -> list[Marked]:
        with classified("neutron"):
            groups = list(self.sdk.network.security_groups(project_id=self.session.get_project_id()))
        return [Marked(group.id, "security group", mark) for group in groups if (mark := mark_in(group.name))]

    def open_ssh(self, mark: str) -> Marked:
        """A security group that lets SSH in from everywhere, and nothing else; whole or not at all."""
        with classified("neutron"):
            group = self.sdk.network.create_security_group(name=mark, description="SSH")
            self.sdk.network.create_security_group_rule(
                security_group_id=group.id,
                direction="ingress",
                ether_type="IPv4",
                protocol="tcp",
                port_range_min=SSH_PORT,
                port_range_max=SSH_PORT,
            )
        return Marked(group.id, "security group", mark)

    def close_ssh(self, opening: Marked) -> None:
        with classified("neutron"):
            self.sdk.network.delete_security_group(opening.id)

    def host_ids(self, lease: dict[str, Any], taken: dict[str, str]) -> tuple[str, ...]:
        """Places of flavors: Blazar keeps what a flavor was in a reservation's resource_properties."""
        return tuple(
            f"{json.loads(one['resource_properties'])['name']}@{taken[one['id']]}"
            for one in by_id(lease["reservations"])
            if one["id"] in taken
        )

    def _flavors(self) -> dict[str, str]:
        """Ids of the flavors, by name."""
        with classified("nova"):
            return {flavor.name: flavor.id for flavor in self.sdk.compute.flavors()}

    def _hypervisors(self) -> list[str]:
        with classified("blazar"):
            return [str(host["id"]) for host in self.blazar.host.list() if host.get("reservable", True)]


def connect(region: str) -> Kvm:
    """The site of virtual machines of the first account for a region whose name begins so."""
    return Kvm(account(region))


def _host(site: str, flavor: dict[str, Any], hypervisor: str) -> Host:
    price = flavor.get("su_cost_per_hour")
    return Host(
        id=f"{flavor['name']}@{hypervisor}",
        name=f"{flavor['name']}@{hypervisor}",
        site=site,
        node_type=flavor["name"],
        su_per_hour=float(price) if price is not None else None,
        flavor=True,
        **gpus(flavor, flavor["name"]),
    )
