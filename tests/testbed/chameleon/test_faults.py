"""What goes wrong at a site, each injected into real services: nodes, addresses, answers, tokens."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from provision import releasing
from provision.acting import Desk
from provision.errors import BootFailed, LeaseGone, NoAddress, NoCredentials, Unreachable
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


def test_where_no_other_node_is_free_the_same_one_is_tried_again_and_its_reason_told(site, desk, order, box, unreached):
    box.behave(P2_GPU_001={"fail": "no bootable device"})
    with pytest.raises(BootFailed, match=r"3 attempts; the site says: .*no bootable device"):
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


def test_a_lease_that_others_delete_is_told(site, desk, order, unreached):
    leased = lease(site, desk, order(start=datetime.now(UTC) + timedelta(hours=20)), wait=False)
    site.delete_lease(leased.lease)
    with pytest.raises(LeaseGone, match="deleted by others, or over"):
        lease(site, desk, order(start=datetime.now(UTC) + timedelta(hours=20)))
    releasing.release(site, desk, releasing.held(desk, "llm_cc"))
