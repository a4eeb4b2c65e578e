"""A client killed with SIGKILL after any operation: the next run resumes, and release leaves nothing."""

import multiprocessing
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provision.choices import LEASING_SITES
from provision.clock import Clock
from provision.configure import end_when_idle
from provision.configure.end_when_idle import set_up_end_when_idle
from provision.leasing import release
from provision.leasing.journal import Journal, Operation
from provision.leasing.lease import lease
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import EndWhenIdle
from tests.testbed.chameleon.conftest import FakeClock, left_at
from tests.testbed.openstack.hardware import KVM

OF_KVM = {Operation.OPEN_SSH, Operation.CLOSE_SSH, Operation.CREATE_VOLUME, Operation.DELETE_VOLUME}
"""Operations only of a site with security groups and volumes."""
END_WHEN_IDLE = EndWhenIdle(timedelta(minutes=30))


class KillingJournal(Journal):
    """A journal that kills its program after an operation, before the outcome is written."""

    def __init__(self, folder: Path, last: Operation) -> None:
        super().__init__(folder)
        self.last = last

    def write(self, event, active_lease, operation=None, **data):
        if event == "done" and operation == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(event, active_lease, operation, **data)


def lease_and_release(site, reconciler, lease_request, stage: Path) -> None:
    stage.write_text("lease")
    lease(site, reconciler, lease_request)
    stage.write_text("idle end")
    set_up_end_when_idle(site, reconciler, lease_request.name, END_WHEN_IDLE)
    stage.write_text("extend")
    release.extend(site, reconciler, release.get_active_lease(reconciler, lease_request.name), timedelta(hours=1))
    stage.write_text("release")
    release.release(site, reconciler, release.get_active_lease(reconciler, lease_request.name))


def first_end(reconciler) -> str:
    """Return the end that was first requested."""
    return next(entry for entry in reconciler.journal.entries() if entry.operation == Operation.CREATE_LEASE).data[
        "end"
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", list(Operation))
def test_a_command_killed_after_any_operation_is_resumed_by_the_next(
    operation, connected, local_openstack, reconciler, lease_request, reachable, tmp_path, monkeypatch
):
    monkeypatch.setattr(end_when_idle, "configure_end_when_idle", lambda *_: ())
    site = connected("kvm" if operation in OF_KVM else "chameleon")
    if operation == Operation.DELETE_VOLUME:
        local_openstack.fail_to_delete_a_volume()
    if operation == Operation.DELETE_SERVER:
        local_openstack.set_boot_behavior(P3_GPU_001={"fail": "no bootable device"})
    any_node = {} if operation == Operation.DELETE_SERVER else {"node_type": None}
    stage, wanted = tmp_path / "stage", lease_request(**any_node)
    deadly = Reconciler(KillingJournal(tmp_path / "state", operation), FakeClock(), lambda line: None)
    child = multiprocessing.get_context("fork").Process(target=lease_and_release, args=(site, deadly, wanted, stage))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, f"{operation} is not part of what the test does"

    if stage.read_text() != "release":
        lease(site, reconciler, wanted)
        set_up_end_when_idle(site, reconciler, wanted.name, END_WHEN_IDLE)
        assert len(site.lease_credentials()) == 1
        end = datetime.fromisoformat(first_end(reconciler))
        if stage.read_text() == "extend":
            release.extend(site, reconciler, release.get_active_lease(reconciler, wanted.name), timedelta(hours=1))
            end += timedelta(hours=1)
        assert [one.end for one in site.leases()] == [end]
        assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]
        assert site.addresses()[0].server == site.servers()[0].id
    release.release(site, reconciler, release.get_active_lease(reconciler, wanted.name))
    assert left_at(site) == []


def test_the_missing_rule_of_a_security_group_is_added(connected, reconciler, lease_request, reachable, monkeypatch):
    site, active_lease = connected("kvm"), reconciler.journal.open_lease("llm_cc", KVM)
    with monkeypatch.context() as deadly:
        deadly.setattr(site.sdk.network, "create_security_group_rule", lambda **_: os.kill(os.getpid(), signal.SIGKILL))
        child = multiprocessing.get_context("fork").Process(target=site.create_security_group, args=(active_lease.tag,))
        child.start()
        child.join()
    assert [(one.tag, one.complete) for one in site.security_groups()] == [(active_lease.tag, False)]
    lease(site, reconciler, lease_request(node_type=None))
    (group,) = site.security_groups()
    rules = list(site.sdk.network.security_group_rules(security_group_id=group.id, direction="ingress"))
    assert [(rule.protocol, rule.port_range_min, rule.port_range_max) for rule in rules] == [("tcp", 22, 22)]


@pytest.mark.timeout(600)
def test_two_simultaneous_clients_that_use_one_lease_name_get_one_lease(
    site, reconciler, lease_request, reachable, tmp_path
):
    wanted, leased = lease_request(), []
    reconcilers = [Reconciler(Journal(tmp_path / "state"), FakeClock(), lambda line: None) for _ in range(2)]
    clients = [threading.Thread(target=lambda one=one: leased.append(lease(site, one, wanted))) for one in reconcilers]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert leased[0] == leased[1]
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LEASING_SITES)
def test_two_simultaneous_clients_on_two_computers_that_use_one_lease_name_get_one_lease(
    name, connected, lease_request, tmp_path
):
    sites = {computer: connected(name) for computer in ("desk", "laptop")}
    for one in sites.values():
        one.sdk.network.find_network("sharednet1")  # the first two searches must not be at the same time
    wanted, outcomes = lease_request(node_type=None, start=datetime.now(UTC) + timedelta(hours=20)), []

    def client(computer: str) -> None:
        reconciler = Reconciler(Journal(tmp_path / computer), Clock(), lambda line: None)
        try:
            outcomes.append(lease(sites[computer], reconciler, wanted, wait=False).lease.name)
        except Exception as problem:
            outcomes.append(type(problem).__name__)

    clients = [threading.Thread(target=client, args=(computer,)) for computer in sites]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert sorted(outcomes) == ["ForeignLease", "llm_cc"]
    assert len(sites["desk"].leases()) == 1
