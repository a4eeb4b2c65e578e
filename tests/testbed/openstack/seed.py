"""What a site's operator sets up: users, catalog, image, networks, flavors, reservable hosts.

Run by the interpreter of the services' environment, with the services up: STAGE (identity | cloud) FOLDER.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import openstack
from keystoneauth1 import session
from keystoneauth1.identity import v3

from tests.testbed.openstack import hardware
from tests.testbed.openstack.settings import FLOATING_IPS, POOLS, PORTS, Place

DOMAIN = "chameleon"
PROJECT, USERS = "CHI-000001", ("cc", "classmate")
SHARED = {
    "placement": ("placement", ""),
    "glance": ("image", ""),
    "neutron": ("network", ""),
    "nova": ("compute", "/v2.1"),
    "volumes": ("volumev3", "/v3/%(project_id)s"),
}
RESERVATION = {hardware.BARE_METAL: "blazar", hardware.KVM: "blazar_kvm"}


def create_identity(place: Place, passwords: dict[str, str]) -> None:
    """Create users and the catalog. Clients use the services' outer address, services each other's inner one."""
    keystone: Any = _admin(place, passwords).identity
    service_project = keystone.create_project(name="service", domain_id="default")
    account = keystone.create_user(name="svc", password=passwords["svc"], domain_id="default")
    service_role = keystone.find_role("service") or keystone.create_role(name="service")
    for role in (keystone.find_role("admin"), service_role):
        keystone.assign_project_role_to_user(service_project, account, role)
    domain = keystone.create_domain(name=DOMAIN)
    project = keystone.create_project(name=PROJECT, domain_id=domain.id)
    for name in USERS:
        user = keystone.create_user(name=name, password=passwords["user"], domain_id=domain.id)
        for role in ("member", "reader"):
            keystone.assign_project_role_to_user(project, user, keystone.find_role(role))
    keystone.create_region(id=hardware.KVM)
    services = {kind: keystone.create_service(name=kind, type=kind).id for kind, _ in SHARED.values()}
    services["reservation"] = keystone.create_service(name="blazar", type="reservation").id
    services["identity"] = next(iter(keystone.services(type="identity"))).id
    for region, blazar in RESERVATION.items():
        for name, (kind, path) in {**SHARED, blazar: ("reservation", "/v1")}.items():
            _add_endpoints(keystone, services[kind], region, place, f":{PORTS[name]}{path}")
    _add_endpoints(keystone, services["identity"], hardware.KVM, place, f":{PORTS['keystone']}/v3")


def _add_endpoints(keystone: Any, service: str, region: str, place: Place, path: str) -> None:
    for interface, address in (("public", place.outer), ("internal", place.inner), ("admin", place.inner)):
        url = f"http://{address}{path}"
        keystone.create_endpoint(service_id=service, interface=interface, region_id=region, url=url)


def create_cloud(place: Place, passwords: dict[str, str]) -> None:
    admin = _admin(place, passwords)
    admin.image.create_image(
        name=hardware.IMAGE,
        data=b"\0" * 1024,
        disk_format="raw",
        container_format="bare",
        visibility="public",
        validate_checksum=False,
    )
    _networks(admin.network, place)
    admin.compute.create_flavor(name="baremetal", ram=1024, vcpus=1, disk=1)
    for name, gpus in hardware.FLAVORS.items():
        cpus = gpus * hardware.HYPERVISOR_CPUS // max(hardware.FLAVORS.values())
        admin.compute.create_flavor(name=name, ram=1024, vcpus=cpus, disk=1)
    for pool in POOLS.values():
        admin.compute.create_aggregate(name=pool)
    _wait_for_hypervisors(admin.compute, len(hardware.NODES))
    _add_hosts(_blazar(place, passwords))


def _networks(neutron: Any, place: Place) -> None:
    public = neutron.create_network(
        name="public",
        is_router_external=True,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    neutron.create_subnet(
        network_id=public.id,
        name="public-subnet",
        ip_version=4,
        cidr=f"{place.floating}.0/24",
        enable_dhcp=False,
        gateway_ip=f"{place.floating}.1",
        allocation_pools=[
            {"start": f"{place.floating}.{FLOATING_IPS[0]}", "end": f"{place.floating}.{FLOATING_IPS[-1]}"}
        ],
    )
    shared = neutron.create_network(
        name="sharednet1",
        is_shared=True,
        provider_network_type="flat",
        provider_physical_network="physnet1",
    )
    subnet = neutron.create_subnet(network_id=shared.id, name="sharednet1-subnet", ip_version=4, cidr="10.140.80.0/22")
    router = neutron.create_router(name="admin-router", external_gateway_info={"network_id": public.id})
    neutron.add_interface_to_router(router, subnet_id=subnet.id)


def _wait_for_hypervisors(nova: Any, number: int) -> None:
    for _ in range(9000):
        if len(list(nova.hypervisors())) >= number:
            return
        time.sleep(0.2)
    sys.exit("nova's hypervisors did not appear")


def _add_hosts(blazar: session.Session) -> None:
    site = {"service_type": "reservation", "interface": "internal"}
    reservation = {"endpoint_filter": {**site, "region_name": hardware.BARE_METAL}}
    for machine in hardware.MACHINES:
        host = {
            "name": machine.uid,
            "uid": machine.uid,
            "node_name": machine.name,
            "node_type": machine.node_type,
            "su_factor": str(4 * machine.gpus or 1),
        }
        blazar.post("/os-hosts", json=host, **reservation)
    blazar.post("/os-hosts", json={"name": hardware.HYPERVISOR}, endpoint_filter={**site, "region_name": hardware.KVM})


def _admin(place: Place, passwords: dict[str, str]) -> openstack.connection.Connection:
    return openstack.connect(
        auth_url=_keystone(place),
        username="admin",
        password=passwords["admin"],
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
        region_name=hardware.BARE_METAL,
        interface="internal",
        compute_api_version="2.61",
    )


def _blazar(place: Place, passwords: dict[str, str]) -> session.Session:
    account = v3.Password(
        auth_url=_keystone(place),
        username="svc",
        password=passwords["svc"],
        project_name="service",
        user_domain_name="Default",
        project_domain_name="Default",
    )
    return session.Session(auth=account)


def _keystone(place: Place) -> str:
    return f"http://{place.inner}:{PORTS['keystone']}/v3"


if __name__ == "__main__":
    stage, folder = sys.argv[1], Path(sys.argv[2])
    stored = json.loads((folder / "box.json").read_text())
    globals()[f"create_{stage}"](Place(folder, stored["prefix"]), stored["passwords"])
