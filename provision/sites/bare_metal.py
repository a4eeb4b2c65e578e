"""Chameleon's bare-metal nodes: whole machines, reserved by Blazar and described by Chameleon's reference API.

There are no volumes and no security groups: nodes boot from their own disks, and the disk image's firewall admits only
SSH.
"""

import json
from typing import Any

from chi.lease import add_node_reservation

from provision.errors import RequestRejected
from provision.models import Host, TimeSlot
from provision.sites.accounts import find_account
from provision.sites.faults import translate_errors
from provision.sites.openstack import Cloud
from provision.sites.reference_api import SERVICE, gpu_fields, reference_items, text_field

FLAVOR = "baremetal"
OWNED_BY_SITE = "the site's"
"""The argument owner_in_log of Cloud.convert_records, for records that describe the site's nodes."""


class BareMetal(Cloud):
    """A bare-metal site."""

    boot_limit_s = 40 * 60

    def hosts(self) -> list[Host]:
        """Return the nodes that are in the reference API and reservable in Blazar."""
        described = dict(
            self.convert_records(
                SERVICE, self._reference_nodes(), lambda node: (text_field(node, "uid"), node), OWNED_BY_SITE
            )
        )
        with translate_errors("blazar"):
            listed = self.blazar.host.list()
        reservable = [host for host in listed if host.get("reservable", True)]
        known = [host for host in reservable if host.get("hypervisor_hostname") in described]
        pairs = [(host, described[host["hypervisor_hostname"]]) for host in known]
        return self.convert_records(SERVICE, pairs, lambda pair: _make_host(self.name, *pair), OWNED_BY_SITE)

    def reservations(self, tag: str, slot: TimeSlot) -> list[dict[str, Any]]:
        """Return reservations of exactly the nodes of ``slot``, in Blazar's format.

        The reservation's properties contain the tag, in a condition that is true for every node, because a lease has no
        other field for the tag.
        """
        reserved: list[dict[str, Any]] = []
        for host in slot.hosts:
            add_node_reservation(reserved, node_name=host.name)
            reserved[-1]["hypervisor_properties"] = json.dumps(["!=", "$hypervisor_hostname", tag])
        return reserved

    def server_options(self, tag: str, reservation_id: str, source: str) -> dict[str, Any]:
        """Return the options of a server that boots from the disk image on the reserved node."""
        return {
            "flavor_id": self._flavor_id(),
            "image_id": source,
            "scheduler_hints": {"reservation": reservation_id},
        }

    def check_boot_requirements(self) -> str:
        """Return in words the networks and the flavor that servers need. Raises RequestRejected if one is missing."""
        networks, _ = super().check_boot_requirements(), self._flavor_id()
        return f"{networks}, flavor {FLAVOR}"

    def _flavor_id(self) -> str:
        with translate_errors("nova"):
            flavor = self.sdk.compute.find_flavor(FLAVOR)
        if flavor is None:
            raise RequestRejected(f"flavor {FLAVOR} does not exist at {self.name}; ask the site's help desk for it")
        return str(flavor.id)

    def _reference_nodes(self) -> list[dict[str, Any]]:
        """Return the descriptions of this site's nodes in the reference API."""
        listed = reference_items("sites")
        uids = dict(
            self.convert_records(
                SERVICE, listed, lambda site: (text_field(site, "name"), text_field(site, "uid")), OWNED_BY_SITE
            )
        )
        if self.name not in uids:
            raise RequestRejected(f"{SERVICE} does not list site {self.name}; ask the site's help desk")
        return reference_items(f"sites/{uids[self.name]}/clusters/chameleon/nodes")


def connect(region: str, entry: str = "") -> BareMetal:
    """Connect to the configured region whose name begins with ``region``. entry: preferred entry of clouds.yaml."""
    return BareMetal(find_account(region, entry))


def _make_host(site: str, host: dict[str, Any], node: dict[str, Any]) -> Host:
    price = host.get("su_factor")
    return Host(
        id=str(host["id"]),
        name=text_field(node, "node_name"),
        site=site,
        node_type=text_field(node, "node_type"),
        su_per_hour=float(price) if price is not None else None,
        **gpu_fields(node, node["node_type"]),
    )
