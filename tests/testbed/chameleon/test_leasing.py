"""Leasing on bare metal: from requirements to a machine that answers SSH, and release."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from provision.choices import DISK_IMAGE
from provision.errors import ExtensionRejected, ForeignLease, LeaseMismatch, NoSuchHost, NotEnoughHosts
from provision.leasing import release
from provision.leasing.lease import lease
from provision.leasing.reconciler import Reconciler
from tests.testbed.chameleon.conftest import left_at

HOUR = timedelta(hours=1)


def test_a_lease_request_becomes_a_reachable_machine_and_its_release_leaves_nothing(
    site, reconciler, lease_request, sshd
):
    leased = lease(site, reconciler, lease_request())
    assert leased.lease.status == "ACTIVE"
    assert leased.lease.name == "llm_cc"
    assert leased.image_id == site.image_id(DISK_IMAGE)
    (machine,) = leased.machines
    messages = subprocess.run([*machine.login.arguments(), "echo", "here"], capture_output=True, text=True)
    assert messages.stdout == "here\n"
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    state = release.lease_snapshot(site, reconciler, active_lease)
    assert [server.name for server in state.servers] == ["node-llm-cc"]
    assert state.ips == (machine.login.host,)
    assert active_lease.machines == (machine,)
    assert all(resource.tag == active_lease.tag for resource in left_at(site))
    release.release(site, reconciler, active_lease)
    assert left_at(site) == []
    assert reconciler.journal.active_leases() == {}


def test_hosts_have_the_gpus_interconnect_and_price_of_the_reference_api(site):
    by_name = {host.name: host for host in site.hosts()}
    assert by_name["P3-GPU-001"].gpus == 4
    assert by_name["P3-GPU-001"].gpu_memory_gib == 80
    assert by_name["gigaio-compute-06"].gpus == 0
    assert by_name["P2-GPU-001"].interconnect == "NVLink"
    assert by_name["P3-GPU-001"].su_per_hour == 16


def test_a_request_for_two_nodes_leaves_out_a_node_of_the_type_that_has_no_gpu(
    site, reconciler, lease_request, reachable
):
    leased = lease(site, reconciler, lease_request(node_type="compute_gigaio", host_count=2))
    hosts = {host.id: host for host in site.hosts()}
    assert {hosts[id].name for id in leased.lease.hosts} == {"gigaio-compute-02", "gigaio-compute-03"}
    assert len({machine.login.host for machine in leased.machines}) == 2


def test_a_future_lease_of_a_node_given_by_name_stays_pending_if_the_command_does_not_wait(
    site, reconciler, lease_request
):
    start = datetime.now(UTC).replace(second=0, microsecond=0) + 30 * HOUR
    leased = lease(site, reconciler, lease_request(node="P2-GPU-002", node_type=None, start=start), wait=False)
    assert leased.machines == ()
    assert (leased.lease.status, leased.lease.start, leased.lease.end) == ("PENDING", start, start + 3 * HOUR)


def test_a_future_lease_shows_progress_until_it_begins_and_is_then_booted(
    site, reconciler, lease_request, local_openstack, reachable, messages
):
    def report(line: str) -> None:
        messages.append(line)
        if line.startswith("lease llm_cc: PENDING"):
            local_openstack.move_clock(2 * HOUR + timedelta(minutes=1))

    start = datetime.now(UTC).replace(second=0, microsecond=0) + 2 * HOUR
    leased = lease(site, Reconciler(reconciler.journal, reconciler.clock, report), lease_request(start=start))
    assert (leased.lease.status, leased.lease.start, len(leased.machines)) == ("ACTIVE", start, 1)
    waited = [line for line in messages if line.startswith("lease llm_cc:")]
    assert waited[0].startswith("lease llm_cc: PENDING, starts in ")
    assert messages.index(waited[-1]) < next(
        n for n, line in enumerate(messages) if line.startswith("server node-llm-cc:")
    )


def test_watching_the_calendar_finds_a_slot_that_somebody_releases(site, reconciler, lease_request, messages):
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + 48 * HOUR
    other = lease(site, reconciler, lease_request("llm_other", host_count=4, start=start), wait=False).lease

    def report(line: str) -> None:
        messages.append(line)
        if "searching again every 2 minutes" in line:
            site.delete_lease(other)

    watching = Reconciler(reconciler.journal, reconciler.clock, report)
    leased = lease(site, watching, lease_request(start=start), wait=False, watch=True).lease
    assert [held.id for held in site.leases()] == [leased.id]
    assert (leased.start, leased.end) == (start, start + 3 * HOUR)
    assert len([line for line in messages if "not enough nodes are free at" in line]) == 1


def test_two_labs_can_have_separate_leases(site, reconciler, lease_request):
    start = datetime.now(UTC) + 24 * HOUR
    single = lease_request("llm_single_cc", node_type="compute_gigaio", length=2 * HOUR, start=start)
    multi = lease_request("llm_multi_cc", length=2 * HOUR, gpus=4, start=start)
    for one in (single, multi):
        lease(site, reconciler, one, wait=False)
    assert sorted(held.name for held in site.leases()) == ["llm_multi_cc", "llm_single_cc"]


def test_the_error_for_a_request_that_overlaps_other_leases_names_the_earliest_alternative(
    site, reconciler, lease_request
):
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + 48 * HOUR
    lease(site, reconciler, lease_request("llm_other", host_count=4, start=start), wait=False)
    with pytest.raises(NotEnoughHosts, match=r"not enough nodes are free at .* UTC.*; the earliest: P3-GPU"):
        lease(site, reconciler, lease_request(start=start + HOUR), wait=False)
    assert [held.name for held in site.leases()] == ["llm_other"]


def test_a_lease_of_the_same_name_that_is_not_in_the_journal_is_not_changed(
    site, reconciler, lease_request, local_openstack
):
    theirs = lease_request(start=datetime.now(UTC) + 24 * HOUR)
    lease(site, reconciler, theirs, wait=False)
    reconciler.journal.write("closed", release.get_active_lease(reconciler, "llm_cc"))
    with pytest.raises(ForeignLease, match="not in the journal on this computer"):
        lease(site, reconciler, theirs, wait=False)
    assert len(site.leases()) == 1


def test_an_active_lease_does_not_satisfy_a_different_request(site, reconciler, lease_request):
    start = datetime.now(UTC) + 24 * HOUR
    lease(site, reconciler, lease_request(start=start), wait=False)
    for other in ({"node_type": "compute_gigaio"}, {"host_count": 2}, {"gpu_memory_gib": 90.0}):
        with pytest.raises(LeaseMismatch, match=r"lease llm_cc is active with 1 x gpu_a100_pcie at .* 4 x .*A100"):
            lease(site, reconciler, lease_request(start=start, **other), wait=False)
    assert lease(site, reconciler, lease_request(start=start, node_type=None), wait=False).lease.name == "llm_cc"
    assert len(site.leases()) == 1


def test_the_error_for_an_unknown_node_type_lists_similar_names(site, reconciler, lease_request):
    with pytest.raises(NoSuchHost, match="similar names: gpu_a100_pcie"):
        lease(site, reconciler, lease_request(node_type="gpu_a100_pci"))


def test_a_lease_cannot_be_extended_into_another_reservation(site, reconciler, lease_request):
    soon = datetime.now(UTC).replace(second=0, microsecond=0) + 2 * HOUR
    leased = lease(site, reconciler, lease_request(node="P3-GPU-001", start=soon, length=HOUR), wait=False).lease
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    assert release.extend(site, reconciler, active_lease, HOUR).end == leased.end + HOUR
    lease(site, reconciler, lease_request("llm_next", node="P3-GPU-001", start=soon + 4 * HOUR), wait=False)
    with pytest.raises(ExtensionRejected):
        release.extend(site, reconciler, active_lease, 3 * HOUR)
    assert release.lease_snapshot(site, reconciler, active_lease).lease.end == leased.end + HOUR


def test_a_lease_that_has_ended_is_shown_as_such(site, reconciler, lease_request, local_openstack, reachable):
    lease(site, reconciler, lease_request())
    local_openstack.move_clock(timedelta(hours=4))
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    ended = reconciler.wait(
        "end",
        lambda: release.lease_snapshot(site, reconciler, active_lease).lease,
        lambda now: now.status == "TERMINATED",
        9e9,
    )
    assert ended
    state = release.lease_snapshot(site, reconciler, active_lease)
    assert (state.servers, state.lease.hosts) == ((), ())
    assert state.used_su > 0
    release.release(site, reconciler, active_lease)
    assert left_at(site) == []
