"""Faults injected into real services: nodes, addresses, answers, tokens."""

import re
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from provision.configure import end_when_idle
from provision.configure.end_when_idle import set_up_end_when_idle
from provision.errors import BootFailed, LeaseFailed, LeaseGone, NoAddress, NoCredentials, Unreachable
from provision.leasing import release
from provision.leasing.journal import Journal, Operation
from provision.leasing.lease import lease
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import EndWhenIdle
from provision.sites.base import connect_to
from tests.testbed.chameleon import conftest
from tests.testbed.chameleon.conftest import FakeClock, left_at
from tests.testbed.openstack.hardware import KVM
from tests.testbed.openstack.settings import FLOATING_IPS

SERVICE = {
    Operation.CREATE_LEASE: "blazar",
    Operation.UPLOAD_KEY: "nova",
    Operation.OPEN_SSH: "neutron",
    Operation.CREATE_VOLUME: "cinder",
    Operation.CREATE_SERVER: "nova",
    Operation.ALLOCATE_ADDRESS: "neutron",
    Operation.ATTACH_ADDRESS: "neutron",
    Operation.EXTEND_LEASE: "blazar",
    Operation.CREATE_CREDENTIAL: "keystone",
    Operation.DELETE_SERVER: "nova",
    Operation.DELETE_VOLUME: "cinder",
    Operation.RELEASE_ADDRESS: "neutron",
    Operation.DELETE_KEY: "nova",
    Operation.CLOSE_SSH: "neutron",
    Operation.DELETE_CREDENTIAL: "keystone",
    Operation.DELETE_LEASE: "blazar",
}
"""The service that carries out an operation."""
MESSAGES = {
    "500": r" has an error \(500\)",
    "hang": " does not answer: ConnectTimeout",
    "gone": " does not answer: ConnectFailure",
    "deaf": " does not answer: ConnectFailure",
}
"""How each fault is reported."""
SHORT_S = 0.5


class FaultInjector:
    """Injects faults into a site's services; each lasts until the client has reported it.

    met: the services that failed, each with the line that reported it.
    """

    def __init__(self, local_openstack, site) -> None:
        self.local_openstack, self.site = local_openstack, site
        self.service: str | None = None
        self.met: list[tuple[str, str]] = []
        self.timeout_s = site.session.timeout

    def inject(self, fault, service):
        """Give a service the fault; a client that gets no answer gives up after SHORT_S."""
        self.service = service
        self._gate().set_fault(fault)
        if service == "keystone":
            self.site.session.invalidate()
        if fault == "hang":
            self.site.session.timeout = SHORT_S

    def report(self, line):
        if self.service and "attempt" in line:
            self._gate().repair()
            self.met.append((self.service, line))
            self.service, self.site.session.timeout = None, self.timeout_s

    def _gate(self):
        at_kvm = {"blazar": "blazar_kvm", "cinder": "volumes"} if self.site.name == KVM else {}
        return self.local_openstack.proxies[at_kvm.get(self.service, self.service)]


class InterceptedJournal(Journal):
    """A journal that calls ``on_operation(operation, attempt)`` at each intent, before the operation itself."""

    def __init__(self, folder, on_operation) -> None:
        super().__init__(folder)
        self.on_operation = on_operation
        self.attempts: Counter[Operation] = Counter()

    def write(self, event, active_lease, operation=None, **data):
        super().write(event, active_lease, operation, **data)
        if event == "intent":
            self.attempts[operation] += 1
            self.on_operation(operation, self.attempts[operation])


def test_a_node_that_does_not_boot_is_replaced_by_another_of_its_hardware(
    site, reconciler, lease_request, local_openstack, reachable, messages
):
    local_openstack.set_boot_behavior(P3_GPU_001={"fail": "IPMI of the node does not answer"})
    leased = lease(site, reconciler, lease_request())
    assert any("IPMI of the node does not answer" in line for line in messages)
    names = {host.id: host.name for host in site.hosts()}
    assert [names[id] for id in leased.lease.hosts] == ["P3-GPU-002"]
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_an_instance_that_does_not_boot_is_tried_again_in_its_reservation(
    connected, reconciler, lease_request, local_openstack, reachable, messages
):
    site = connected("kvm")
    local_openstack.set_boot_behavior(hypervisor={"fail": "no such volume"})

    def report(line: str) -> None:
        messages.append(line)
        if line.startswith("attempt 1"):
            local_openstack.set_boot_behavior()

    leased = lease(site, Reconciler(reconciler.journal, reconciler.clock, report), lease_request(node_type=None))
    assert any("attempt 1 of 3" in line and "no such volume" in line for line in messages)
    assert len(leased.machines) == 1
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_if_one_of_two_nodes_does_not_boot_both_are_replaced(
    site, reconciler, lease_request, local_openstack, reachable
):
    local_openstack.set_boot_behavior(P3_GPU_002={"fail": "IPMI of the node does not answer"})
    leased = lease(site, reconciler, lease_request(host_count=2))
    names = {host.id: host.name for host in site.hosts()}
    assert {names[id] for id in leased.lease.hosts} == {"P3-GPU-003", "P3-GPU-004"}
    assert [names[id] for id in release.get_active_lease(reconciler, "llm_cc").failed_hosts] == ["P3-GPU-002"]
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 2, 2]


def test_without_another_free_node_the_same_node_is_retried_and_its_fault_is_reported(
    site, reconciler, lease_request, local_openstack, reachable
):
    local_openstack.set_boot_behavior(P2_GPU_001={"fail": "no bootable device"})
    with pytest.raises(
        BootFailed, match=r"on P2-GPU-001; the site's reason: .*no bootable device.*3 attempts; release"
    ):
        lease(site, reconciler, lease_request(node_type=None, node="P2-GPU-001"))
    assert site.servers() == []
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert left_at(site) == []


def test_the_client_waits_longer_than_twenty_minutes_for_a_boot(
    site, reconciler, lease_request, local_openstack, reachable, messages
):
    local_openstack.set_boot_behavior(P3_GPU_001={"seconds": 12})  # longer than two queries take on a busy machine

    def report(line: str) -> None:
        if line.startswith("server") and not any(earlier.startswith("server") for earlier in messages):
            reconciler.clock.skipped_s += 25 * 60
        messages.append(line)

    assert lease(site, Reconciler(reconciler.journal, reconciler.clock, report), lease_request()).machines
    waited = [int(minutes) for minutes in re.findall(r"BUILD, spawning, for (\d+) of up to 40 minutes", str(messages))]
    assert max(waited) >= 25


def test_a_lack_of_addresses_is_reported_and_the_next_run_resumes(
    site, reconciler, lease_request, local_openstack, reachable
):
    others = [site.allocate_address("llm-testbed-000000000000") for _ in FLOATING_IPS[1:]]
    with pytest.raises(NoAddress, match="no floating IP is free"):
        lease(site, reconciler, lease_request())
    site.release_address(others.pop())
    assert lease(site, reconciler, lease_request()).machines
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert len(site.addresses()) == len(others)


def test_an_unattached_address_of_the_project_may_belong_to_somebody_and_is_not_used(
    site, reconciler, lease_request, reachable
):
    spare = site.sdk.network.create_ip(floating_network_id=site.sdk.network.find_network("public").id)
    assert lease(site, reconciler, lease_request()).machines[0].login.host != spare.floating_ip_address
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert [(address.ip, address.server) for address in site.addresses()] == [(spare.floating_ip_address, "")]


def test_a_classmate_s_lease_without_reservations_is_not_an_error(site, connected, reconciler, lease_request, caplog):
    theirs = connected("chameleon", "classmate")
    by_hand = theirs.blazar.lease.create(
        "by-hand", "now", f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%d %H:%M}", [], []
    )
    start = datetime.now(UTC) + timedelta(hours=24)
    lease(site, reconciler, lease_request(start=start), wait=False)
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    assert release.lease_snapshot(site, reconciler, active_lease).lease.status == "PENDING"
    release.release(site, reconciler, active_lease)
    assert "by-hand cannot be read" in caplog.text
    assert [one["name"] for one in site.blazar.lease.list()] == ["by-hand"]
    theirs.blazar.lease.delete(by_hand["id"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", MESSAGES)
def test_leasing_succeeds_although_each_service_or_keystone_fails_twice_at_each_operation(
    fault, connected, lease_request, local_openstack, reachable, tmp_path, monkeypatch
):
    monkeypatch.setattr(conftest, "REAL_S", 0.1)
    monkeypatch.setattr(end_when_idle, "configure_end_when_idle", lambda *_: ())
    site = connected("kvm")
    injector, wanted = FaultInjector(local_openstack, site), lease_request(node_type=None)

    def on_operation(operation, attempt):
        if attempt <= 2:
            injector.inject(fault, SERVICE[operation] if attempt == 1 else "keystone")

    def report(line):
        injector.report(line)
        if line.startswith("attempt 1"):
            local_openstack.set_boot_behavior()

    local_openstack.set_boot_behavior(hypervisor={"fail": "no such volume"})
    journal = InterceptedJournal(tmp_path / "state", on_operation)
    reconciler = Reconciler(journal, FakeClock(), report)
    assert lease(site, reconciler, wanted).machines
    set_up_end_when_idle(site, reconciler, wanted.name, EndWhenIdle(timedelta(minutes=30)))
    of_access = (site.addresses(), site.keys(), site.security_groups(), site.lease_credentials())
    one_of_each = (site.leases(), site.servers(), site.volumes(), *of_access)
    assert [len(found) for found in one_of_each] == [1] * len(one_of_each)
    ends = release.extend(site, reconciler, release.get_active_lease(reconciler, wanted.name), timedelta(hours=1)).end
    assert [one.end for one in site.leases()] == [ends]
    local_openstack.fail_to_delete_a_volume()
    release.release(site, reconciler, release.get_active_lease(reconciler, wanted.name))
    assert left_at(site) == []
    assert set(journal.attempts) == set(Operation)
    assert len(injector.met) == sum(min(number, 2) for number in journal.attempts.values())
    for service, line in injector.met:
        assert re.match(f"{'.*' if service == 'keystone' else service}{MESSAGES[fault]}", line), (service, line)


@pytest.fixture
def lease_with_interrupted_waits(site, lease_request, local_openstack, reachable, tmp_path):
    """Lease, and call ``on_operation`` once in the wait for a future lease and once in the wait for a server."""

    def run(injector, on_operation):
        local_openstack.set_boot_behavior(P3_GPU_001={"seconds": 3})
        waits = {"lease llm_cc: PENDING": "blazar", "server node-llm-cc: BUILD": "nova"}

        def report(line):
            injector.report(line)
            for wait in [wait for wait in waits if line.startswith(wait)]:
                local_openstack.move_clock(timedelta(hours=2, minutes=1))
                on_operation(waits.pop(wait))

        reconciler = Reconciler(Journal(tmp_path / "state"), FakeClock(), report)
        assert lease(
            site, reconciler, lease_request(node="P3-GPU-001", start=datetime.now(UTC) + timedelta(hours=2))
        ).machines
        assert waits == {}

    return run


def test_leasing_succeeds_although_a_service_fails_during_the_wait_for_a_lease_or_a_server(
    site, local_openstack, lease_with_interrupted_waits
):
    injector = FaultInjector(local_openstack, site)
    lease_with_interrupted_waits(injector, lambda service: injector.inject("500", service))
    assert [service for service, _ in injector.met] == ["blazar", "nova"]


def test_a_token_that_keystone_revokes_during_a_wait_is_renewed(site, local_openstack, lease_with_interrupted_waits):
    revoked = []

    def revoke(service):
        """Revoke a token that no service has seen: services cache tokens for minutes."""
        site.session.invalidate()
        revoked.append(site.session.get_token())
        site.sdk.identity.delete("/auth/tokens", headers={"X-Subject-Token": revoked[-1]})
        proxy = local_openstack.proxies["blazar" if service == "blazar" else "nova"]
        proxy.recorded_traffic = bytearray()

    lease_with_interrupted_waits(FaultInjector(local_openstack, site), revoke)
    assert len(set(revoked)) == 2
    for service, token in zip(("blazar", "nova"), revoked, strict=True):
        heard = bytes(local_openstack.proxies[service].recorded_traffic)
        assert token.encode() in heard
        assert b" 401 " in heard
    assert site.session.get_token() not in revoked


@pytest.mark.parametrize("service", ["blazar", "nova", "neutron", "keystone"])
def test_an_unreachable_service_is_named_after_a_bounded_number_of_attempts(
    service, site, reconciler, lease_request, local_openstack, messages
):
    local_openstack.proxies[service].set_fault("gone")
    with pytest.raises(Unreachable, match="does not answer"):
        lease(site, reconciler, lease_request())
    assert any("attempt" in line for line in messages)


def test_a_token_that_has_expired_is_renewed(site, lease_request, reachable, tmp_path):
    def expire(operation, attempt):
        site.session.auth.auth_ref._auth_token = "expired"

    reconciler = Reconciler(InterceptedJournal(tmp_path / "state", expire), FakeClock(), lambda line: None)
    assert lease(site, reconciler, lease_request()).machines


def test_rejected_credentials_are_not_shown(local_openstack, account, monkeypatch):
    monkeypatch.setenv("OS_PASSWORD", "wrong-secret")
    with pytest.raises(NoCredentials, match="keystone rejects them") as rejected:
        connect_to("chameleon").user()
    assert "wrong-secret" not in str(rejected.value)


def test_a_lease_with_the_status_error_raises_an_error_with_the_reason_of_the_site(
    site, reconciler, lease_request, local_openstack, reachable
):
    wanted = lease_request(start=datetime.now(UTC) + timedelta(hours=20))
    made = lease(site, reconciler, wanted, wait=False).lease
    with without_aggregate(local_openstack, made.reservation_ids[0]):
        local_openstack.move_clock(timedelta(hours=20, minutes=1))
        with pytest.raises(LeaseFailed, match=r"is ERROR \(blazar: start_lease failed; reservation .* is in error\)"):
            lease(site, reconciler, wanted)
    assert site.servers() == []
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert left_at(site) == []


@contextmanager
def without_aggregate(local_openstack, reservation):
    """Hide a reservation's host aggregate from Blazar, as if an operator had removed it: the lease cannot start."""
    negate = "UPDATE computehost_reservations SET aggregate_id = -aggregate_id WHERE reservation_id = ?"
    with closing(
        sqlite3.connect(local_openstack.place.folder / "db" / "blazar.db", timeout=60, isolation_level=None)
    ) as blazar:
        blazar.execute(negate, [reservation])
        yield
        blazar.execute(negate, [reservation])


def test_a_lease_that_others_delete_is_reported(site, reconciler, lease_request, reachable):
    leased = lease(site, reconciler, lease_request(start=datetime.now(UTC) + timedelta(hours=20)), wait=False)
    site.delete_lease(leased.lease)
    with pytest.raises(LeaseGone, match="somebody else deleted it, or it has ended"):
        lease(site, reconciler, lease_request(start=datetime.now(UTC) + timedelta(hours=20)))
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))


@pytest.mark.parametrize("stage", ["lease llm_cc: PENDING", "server node-llm-cc: BUILD"])
def test_a_lease_that_others_delete_during_a_wait_is_reported(
    stage, site, reconciler, lease_request, local_openstack, reachable, messages
):
    def report(line: str) -> None:
        if line.startswith(stage):
            for server in site.servers():
                site.delete_server(server)
            for held in site.leases():
                site.delete_lease(held)
        messages.append(line)

    local_openstack.set_boot_behavior(P3_GPU_001={"seconds": 3})
    start = {"start": datetime.now(UTC) + timedelta(hours=20)} if "PENDING" in stage else {}
    with pytest.raises(LeaseGone, match="somebody else deleted it, or it has ended; release it here and lease again"):
        lease(site, Reconciler(reconciler.journal, reconciler.clock, report), lease_request(**start))
    assert site.leases() == []
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert left_at(site) == []
