"""What goes wrong at a site, each injected into real services: nodes, addresses, answers, tokens."""

import sqlite3
import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from provision import releasing
from provision.acting import Desk
from provision.errors import BootFailed, LeaseFailed, LeaseGone, NoAddress, NoCredentials, Unreachable
from provision.leasing import lease
from provision.ledger import Act, Ledger
from provision.site import connect_to
from tests.testbed.chameleon.conftest import FastClock, left_at
from tests.testbed.openstack.settings import FLOATING_IPS

SERVICE = {
    Act.CREATE_LEASE: "blazar",
    Act.UPLOAD_KEY: "nova",
    Act.CREATE_SERVER: "nova",
    Act.ALLOCATE_ADDRESS: "neutron",
    Act.ATTACH_ADDRESS: "neutron",
}
OUTAGE_S = 1.5


class Unlucky(Ledger):
    """A ledger at whose intents something happens, before the act itself."""

    def __init__(self, folder, happens) -> None:
        super().__init__(folder)
        self.happens, self.seen = happens, set()

    def write(self, event, holding, act=None, **data):
        super().write(event, holding, act, **data)
        if event == "intent" and act not in self.seen:
            self.seen.add(act)
            self.happens(act)


def test_a_node_that_does_not_boot_is_left_for_another_of_its_hardware(site, desk, order, box, unreached, said):
    box.behave(P3_GPU_001={"fail": "IPMI of the node does not answer"})
    leased = lease(site, desk, order())
    assert any("IPMI of the node does not answer" in line for line in said)
    names = {host.id: host.name for host in site.hosts()}
    assert [names[id] for id in leased.lease.hosts] == ["P3-GPU-002"]
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_a_flavor_that_does_not_boot_is_tried_again_in_its_reservation(connected, desk, order, box, unreached, said):
    site = connected("kvm")
    box.behave(hypervisor={"fail": "no such volume"})

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("attempt 1"):
            box.behave()

    leased = lease(site, Desk(desk.ledger, desk.clock, say), order(node_type=None))
    assert any("attempt 1 of 3" in line and "no such volume" in line for line in said)
    assert len(leased.machines) == 1
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_of_two_nodes_both_are_changed_where_one_does_not_boot(site, desk, order, box, unreached):
    box.behave(P3_GPU_002={"fail": "IPMI of the node does not answer"})
    leased = lease(site, desk, order(count=2))
    names = {host.id: host.name for host in site.hosts()}
    assert {names[id] for id in leased.lease.hosts} == {"P3-GPU-003", "P3-GPU-004"}
    assert [names[id] for id in releasing.held(desk, "llm_cc").failed_hosts] == ["P3-GPU-002"]
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 2, 2]


def test_where_no_other_node_is_free_the_same_one_is_tried_again_and_its_reason_told(site, desk, order, box, unreached):
    box.behave(P2_GPU_001={"fail": "no bootable device"})
    with pytest.raises(BootFailed, match=r"on P2-GPU-001; the site says: .*no bootable device.*3 attempts; release"):
        lease(site, desk, order(node_type=None, node="P2-GPU-001"))
    assert site.servers() == []
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))
    assert left_at(site) == []


def test_a_boot_longer_than_the_clients_own_twenty_minutes_is_waited_for(site, desk, order, box, unreached, said):
    box.behave(P3_GPU_001={"seconds": 4})

    def say(line: str) -> None:
        if line.startswith("server") and not any(told.startswith("server") for told in said):
            desk.clock.skipped_s += 25 * 60
        said.append(line)

    assert lease(site, Desk(desk.ledger, desk.clock, say), order()).machines
    assert any("BUILD for 25 of up to 40 minutes" in line for line in said)


def test_no_free_address_is_told_and_the_next_run_goes_on(site, desk, order, box, unreached):
    others = [site.allocate_address("llm-testbed-000000000000") for _ in FLOATING_IPS[1:]]
    with pytest.raises(NoAddress, match="no floating IP is free"):
        lease(site, desk, order())
    site.release_address(others.pop())
    assert lease(site, desk, order()).machines
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))
    assert len(site.addresses()) == len(others)


def test_a_free_address_of_the_project_is_used_and_stays_after_release(site, desk, order, unreached):
    spare = site.sdk.network.create_ip(floating_network_id=site.sdk.network.find_network("public").id)
    assert lease(site, desk, order()).machines[0].login.host == spare.floating_ip_address
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))
    assert [(address.ip, address.server) for address in site.addresses()] == [(spare.floating_ip_address, "")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["500", "hang", "gone"])
def test_each_service_may_fail_for_a_while_at_each_act(fault, site, order, box, unreached, tmp_path, monkeypatch):
    broken = []

    def happens(act):
        gate = box.gates[SERVICE[act]]
        broken.append(act)
        gate.shut(fault)
        threading.Timer(OUTAGE_S, gate.mend).start()

    monkeypatch.setattr(site.session, "timeout", 10)
    box.gates["keystone"].shut(fault)
    threading.Timer(OUTAGE_S, box.gates["keystone"].mend).start()
    desk = Desk(Unlucky(tmp_path / "state", happens), FastClock(), lambda line: None)
    assert lease(site, desk, order()).machines
    assert set(broken) == set(SERVICE)
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


@pytest.mark.parametrize("service", ["blazar", "nova", "neutron", "keystone"])
def test_a_service_that_stays_away_is_named_after_a_bounded_number_of_attempts(service, site, desk, order, box, said):
    box.gates[service].shut("gone")
    with pytest.raises(Unreachable, match="does not answer"):
        lease(site, desk, order())
    assert any("attempt" in line for line in said)


def test_a_token_that_has_expired_is_renewed(site, order, unreached, tmp_path):
    def expire(act):
        site.session.auth.auth_ref._auth_token = "expired"

    desk = Desk(Unlucky(tmp_path / "state", expire), FastClock(), lambda line: None)
    assert lease(site, desk, order()).machines


def test_refused_credentials_are_told_without_them(box, account, monkeypatch):
    monkeypatch.setenv("OS_PASSWORD", "wrong-secret")
    with pytest.raises(NoCredentials, match="keystone refuses them") as refused:
        connect_to("chameleon").user()
    assert "wrong-secret" not in str(refused.value)


def test_a_lease_in_error_is_a_failure_with_what_the_site_tells_of_it(site, desk, order, box, unreached):
    wanted = order(start=datetime.now(UTC) + timedelta(hours=20))
    made = lease(site, desk, wanted, wait=False).lease
    with without_aggregate(box, made.resources[0]):
        box.move_clock(timedelta(hours=20, minutes=1))
        with pytest.raises(LeaseFailed, match=r"is ERROR \(blazar: start_lease failed; reservation .* is in error\)"):
            lease(site, desk, wanted)
    assert site.servers() == []
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))
    assert left_at(site) == []


@contextmanager
def without_aggregate(box, reservation):
    """A reservation whose hosts Blazar finds no aggregate for, as when an operator removed it: it cannot begin."""
    negate = "UPDATE computehost_reservations SET aggregate_id = -aggregate_id WHERE reservation_id = ?"
    with closing(sqlite3.connect(box.place.folder / "db" / "blazar.db", timeout=60, isolation_level=None)) as blazar:
        blazar.execute(negate, [reservation])
        yield
        blazar.execute(negate, [reservation])


def test_a_lease_that_others_delete_is_told(site, desk, order, unreached):
    leased = lease(site, desk, order(start=datetime.now(UTC) + timedelta(hours=20)), wait=False)
    site.delete_lease(leased.lease)
    with pytest.raises(LeaseGone, match="deleted by others, or over"):
        lease(site, desk, order(start=datetime.now(UTC) + timedelta(hours=20)))
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))


@pytest.mark.parametrize("stage", ["lease llm_cc: PENDING", "server node-llm-cc: BUILD"])
def test_a_lease_that_others_delete_while_it_is_waited_for_is_told(stage, site, desk, order, box, unreached, said):
    def say(line: str) -> None:
        if line.startswith(stage):
            for held in site.leases():
                site.delete_lease(held)
        said.append(line)

    box.behave(P3_GPU_001={"seconds": 3})
    start = {"start": datetime.now(UTC) + timedelta(hours=20)} if "PENDING" in stage else {}
    with pytest.raises(LeaseGone, match="deleted by others, or over; release it here and lease anew"):
        lease(site, Desk(desk.ledger, desk.clock, say), order(**start))
    assert site.leases() == []
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))
    assert left_at(site) == []
