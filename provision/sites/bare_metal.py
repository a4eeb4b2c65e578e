"""Bare-metal nodes of Chameleon: whole machines, reserved by Blazar, of the kinds that the reference API describes."""

import json
from typing import Any

from chi.lease import add_node_reservation

from provision.errors import Refused
from provision.models import Host, TaggedResource, TimeSlot, Volume
from provision.sites.openstack import Cloud, account, classified, gpus, reference

FLAVOR = "baremetal"


class BareMetal(Cloud):
    """A bare-metal site."""

    boot_limit_s = 40 * 60
    opens_ssh = False
    boots_from_volume = False

    def hosts(self) -> list[Host]:
        """The nodes that the reference API describes and Blazar lets people reserve."""
        described = {node["uid"]: node for node in self._described()}
        with classified("blazar"):
            listed = self.blazar.host.list()
        return [
            _host(self.name, host, described[host["hypervisor_hostname"]])
            for host in listed
            if host.get("reservable", True) and host["hypervisor_hostname"] in described
        ]

    def reservations(self, tag: str, slot: TimeSlot) -> list[dict[str, Any]]:
        """Exactly these nodes. The mark is in a condition that all nodes meet, the only place for it in a lease."""
        reserved: list[dict[str, Any]] = []
        for host in slot.hosts:
            add_node_reservation(reserved, node_name=host.name)
            reserved[-1]["hypervisor_properties"] = json.dumps(["!=", "$hypervisor_hostname", tag])
        return reserved

    def server_options(self, tag: str, resource: str, source: str) -> dict[str, Any]:
        flavor = self.sdk.compute.find_flavor(FLAVOR, ignore_missing=False)
        return {
            "flavor_id": flavor.id,
            "image_id": source,
            "scheduler_hints": {"reservation": resource},
        }

    def volumes(self) -> list[Volume]:
        """None: nodes boot from their own disks."""
        return []

    def create_volume(self, name: str, tag: str, image_id: str) -> Volume:
        raise AssertionError("bare metal boots from no volume")

    def delete_volume(self, volume: Volume) -> None:
        raise AssertionError("bare metal boots from no volume")

    def openings(self) -> list[TaggedResource]:
        """None: there are no security groups; the image's own firewall lets SSH in alone."""
        return []

    def open_ssh(self, tag: str) -> TaggedResource:
        raise AssertionError("bare metal has no security groups")

    def close_ssh(self, opening: TaggedResource) -> None:
        raise AssertionError("bare metal has no security groups")

    def _described(self) -> list[dict[str, Any]]:
        uid = next((site["uid"] for site in reference("sites") if site["name"] == self.name), None)
        if uid is None:
            raise Refused(f"the reference API knows no site {self.name}")
        return reference(f"sites/{uid}/clusters/chameleon/nodes")


def connect(region: str) -> BareMetal:
    """The bare-metal site of the first account for a region whose name begins so."""
    return BareMetal(account(region))


def _host(site: str, host: dict[str, Any], node: dict[str, Any]) -> Host:
    price = host.get("su_factor")
    return Host(
        id=str(host["id"]),
        name=node["node_name"],
        site=site,
        node_type=node["node_type"],
        su_per_hour=float(price) if price is not None else None,
        **gpus(node, node["node_type"]),
    )
