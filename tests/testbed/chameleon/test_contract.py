"""The behavior that all sites share, tested at bare metal and KVM."""

import json
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from experiments.runners.targets import target_named
from provision.choices import LEASING_SITES
from provision.errors import BootFailed, NotEnoughHosts
from provision.hardware import local
from provision.leasing import boot, release
from provision.leasing.journal import Operation
from provision.leasing.lease import lease
from provision.leasing.resources import list_resources_once
from tests.testbed.chameleon.conftest import left_at
from tests.testbed.openstack.settings import PORTS

HOUR = timedelta(hours=1)


@pytest.fixture(params=LEASING_SITES)
def any_site(request, connected):
    return connected(request.param)


def test_hosts_of_a_site_have_gpus_prices_and_unique_ids(any_site):
    hosts = any_site.hosts()
    assert len({host.id for host in hosts}) == len(hosts)
    assert all(host.site == any_site.name and host.su_per_hour for host in hosts)
    assert any(host.gpus == 4 and host.gpu_model and (host.is_flavor or host.gpu_memory_gib >= 80) for host in hosts)


def test_the_hosts_of_a_lease_are_booked_from_its_start_to_its_end(any_site, reconciler, lease_request):
    start = datetime.now(UTC).replace(second=0, microsecond=0) + 24 * HOUR
    leased = lease(any_site, reconciler, lease_request(node_type=None, start=start, gpus=4), wait=False).lease
    assert leased.hosts
    (found,) = any_site.leases()
    assert (found.name, found.tag) == ("llm_cc", release.get_active_lease(reconciler, "llm_cc").tag)
    booked = [booking for booking in any_site.bookings() if booking.host_id in leased.hosts]
    assert {(booking.start, booking.end) for booking in booked} == {(start, start + 3 * HOUR)}


def test_a_lease_gives_a_machine_and_can_be_extended_and_leaves_no_resources(any_site, reconciler, lease_request, sshd):
    leased = lease(any_site, reconciler, lease_request(node_type=None))
    assert leased.lease.status == "ACTIVE"
    assert len(leased.machines) == 1
    state = release.lease_snapshot(any_site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert state.used_su is not None
    assert release.extend(any_site, reconciler, state.active_lease, HOUR).end == leased.lease.end + HOUR
    assert any_site.leases()[0].end == leased.lease.end + HOUR
    release.release(any_site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert left_at(any_site) == []


def test_deleting_a_deleted_resource_is_not_an_error(any_site, reconciler, lease_request):
    leased = lease(
        any_site, reconciler, lease_request(node_type=None, start=datetime.now(UTC) + 2 * HOUR), wait=False
    ).lease
    for _ in range(2):
        any_site.delete_lease(leased)
    address = any_site.allocate_address("llm-testbed-000000000000")
    for _ in range(2):
        any_site.release_address(address)


@pytest.mark.parametrize("name", ["local", *LEASING_SITES])
def test_the_target_for_rows_at_every_site_has_the_machine_s_cores_processor_and_memory(
    name, connected, reconciler, lease_request, sshd
):
    if name in LEASING_SITES:
        lease(connected(name), reconciler, lease_request(node_type=None))
    target = target_named(name, None, None, reconciler.journal)
    machine = local.this_machine()
    assert (target.node.cpus, target.node.processor) == (machine.cpus, machine.processor)
    assert target.node.host_memory_gib == pytest.approx(machine.host_memory_gib, rel=0.01)
    remote = name != "local"
    assert (target.has_queue, getattr(target, "ends_at", None) is not None) == (remote, remote)
    target.close()


@pytest.mark.parametrize("any_site", ["kvm"], indirect=True)
def test_a_kvm_server_boots_from_a_volume_of_200_gib_that_is_deleted_with_it(
    any_site, local_openstack, reconciler, lease_request, sshd
):
    site = any_site
    lease(site, reconciler, lease_request(node_type="g1.h100.pci.4"))
    (volume,) = volumes(local_openstack)
    assert volume["size"] == 200
    (group,) = site.security_groups()
    assert [(one.tag, one.owner, one.status) for one in site.volumes()] == [(group.tag, site.user_id(), "in-use")]
    rules = site.sdk.network.security_group_rules(security_group_id=group.id, direction="ingress")
    assert [(rule.protocol, rule.port_range_min, rule.port_range_max) for rule in rules] == [("tcp", 22, 22)]
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    assert f"volume {volume['id']}" in list_resources_once(site, active_lease)
    release.release(site, reconciler, active_lease)
    assert Operation.DELETE_VOLUME not in {entry.operation for entry in reconciler.journal.entries()}
    assert volumes(local_openstack) == []
    assert left_at(site) == []


@pytest.mark.parametrize("any_site", ["kvm"], indirect=True)
def test_a_failed_boot_at_the_kvm_site_leaves_no_volume(
    any_site, local_openstack, reconciler, lease_request, monkeypatch
):
    monkeypatch.setattr(boot, "BOOT_ATTEMPTS", 1)
    local_openstack.set_boot_behavior(hypervisor={"fail": "no GPU answers"})
    local_openstack.fail_to_delete_a_volume()
    with pytest.raises(BootFailed, match="no GPU answers"):
        lease(any_site, reconciler, lease_request(node_type="g1.h100.pci.1"))
    assert (volumes(local_openstack), any_site.servers()) == ([], [])


@pytest.mark.parametrize("any_site", ["kvm"], indirect=True)
def test_flavors_share_a_hypervisor_until_its_gpus_are_used_up(any_site, reconciler, lease_request):
    start = datetime.now(UTC).replace(second=0, microsecond=0) + 24 * HOUR
    for name in ("llm_single_cc", "llm_other"):
        lease(any_site, reconciler, lease_request(name, node_type="g1.h100.pci.1", start=start), wait=False)
    with pytest.raises(NotEnoughHosts, match="not enough nodes are free"):
        lease(any_site, reconciler, lease_request(node_type="g1.h100.pci.4", start=start), wait=False)
    assert len(any_site.leases()) == 2


def volumes(local_openstack) -> list[dict[str, object]]:
    url = f"http://{local_openstack.place.inner}:{PORTS['volumes']}/v3/any/volumes/detail"
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)["volumes"]
