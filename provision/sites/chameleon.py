"""Bare-metal nodes of Chameleon: whole machines, reserved by Blazar, of the kinds that the reference API describes."""

import json
import re
from typing import Any

import requests
from chi import context
from chi.lease import add_node_reservation

from provision.errors import Refused
from provision.model import Host, Marked, Slot
from provision.sites.cloud import REQUEST_S, Cloud, account, classified

FLAVOR = "baremetal"
GIB = 1024**3
MEMORY = re.compile(r"(\d+) ?G[iB]?B?\b")
INTERCONNECTS = {"nvlink": "NVLink", "sxm": "NVLink", "pcie": "PCIe", "pci": "PCIe"}


class BareMetal(Cloud):
    """A bare-metal site."""

    boot_limit_s = 40 * 60
    opens_ssh = False

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

    def reservations(self, mark: str, slot: Slot) -> list[dict[str, Any]]:
        """Exactly these nodes. The mark is in a condition that all nodes meet, the only place for it in a lease."""
        reserved: list[dict[str, Any]] = []
        for host in slot.hosts:
            add_node_reservation(reserved, node_name=host.name)
            reserved[-1]["hypervisor_properties"] = json.dumps(["!=", "$hypervisor_hostname", mark])
        return reserved

    def server_options(self, mark: str, resource: str, image_id: str) -> dict[str, Any]:
        flavor = self.sdk.compute.find_flavor(FLAVOR, ignore_missing=False)
        return {
            "flavor_id": flavor.id,
            "image_id": image_id,
            "scheduler_hints": {"reservation": resource},
        }

    def openings(self) -> list[Marked]:
        """None: there are no security groups; the image's own firewall lets SSH in alone."""
        return []

    def open_ssh(self, mark: str) -> Marked:
        raise AssertionError("bare metal has no security groups")

    def close_ssh(self, opening: Marked) -> None:
        raise AssertionError("bare metal has no security groups")

    def _described(self) -> list[dict[str, Any]]:
        with classified("the reference API"):
            sites = _get("sites")["items"]
            uid = next((site["uid"] for site in sites if site["name"] == self.name), None)
            if uid is None:
                raise Refused(f"the reference API knows no site {self.name}")
            return _get(f"sites/{uid}/clusters/chameleon/nodes")["items"]


def connect() -> BareMetal:
    """The bare-metal site that the account is for."""
    return BareMetal(account("CHI@"))


def _get(path: str) -> dict[str, Any]:
    answer = requests.get(f"{context.RESOURCE_API_URL}/{path}.json", timeout=REQUEST_S)
    answer.raise_for_status()
    return answer.json()


def _host(site: str, host: dict[str, Any], node: dict[str, Any]) -> Host:
    gpu = node.get("gpu") or {}
    gpu = gpu[0] if isinstance(gpu, list) else gpu
    has = bool(gpu.get("gpu"))
    model = str(gpu.get("gpu_model") or "") if has else ""
    price = host.get("su_factor")
    return Host(
        id=str(host["id"]),
        name=node["node_name"],
        site=site,
        node_type=node["node_type"],
        gpu_model=model,
        gpus=int(gpu.get("gpu_count") or 1) if has else 0,
        gpu_memory_gib=_memory_gib(gpu, model),
        interconnect=_interconnect(f"{model} {node['node_type']}") if has else "",
        su_per_hour=float(price) if price is not None else None,
    )


def _memory_gib(gpu: dict[str, Any], model: str) -> float:
    """As the site states it, else as the model's name does; 0 where neither does."""
    if stated := gpu.get("gpu_memory"):
        return stated / GIB
    named = MEMORY.search(model)
    return float(named[1]) if named else 0.0


def _interconnect(words: str) -> str:
    """How the GPUs are joined, from the words of the model and the node type."""
    return next((name for word, name in INTERCONNECTS.items() if word in words.lower()), "")
