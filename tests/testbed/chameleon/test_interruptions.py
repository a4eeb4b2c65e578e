"""A client killed with -9 after any act outside: the next run ends with one of each, and release with none."""

import multiprocessing
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provision.leasing import release
from provision.leasing.lease import lease
from provision.leasing.ledger import Act, Ledger
from provision.leasing.reconciler import Desk
from provision.sites.base import TESTBEDS
from tests.testbed.chameleon.conftest import FakeClock, left_at
from tests.testbed.openstack.hardware import KVM

OF_KVM = {Act.OPEN_SSH, Act.CLOSE_SSH, Act.CREATE_VOLUME, Act.DELETE_VOLUME}
"""Acts that only a site with security groups and volumes needs."""


class Deadly(Ledger):
    """A ledger whose program dies after the act, before its outcome is written."""

    def __init__(self, folder: Path, last: Act) -> None:
        super().__init__(folder)
        self.last = last

    def write(self, event, holding, act=None, **data):
        if event == "done" and act == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(event, holding, act, **data)


def everything(site, desk, order, stage: Path) -> None:
    stage.write_text("lease")
    lease(site, desk, order)
    stage.write_text("extend")
    release.extend(site, desk, release.held(desk, order.name), timedelta(hours=1))
    stage.write_text("release")
    release.release(site, desk, release.held(desk, order.name))


def first_end(desk) -> str:
    """The end that the lease was asked for with at first."""
    return next(entry for entry in desk.ledger.entries() if entry.act == Act.CREATE_LEASE).data["end"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("act", Act)
def test_a_run_that_is_killed_after_an_act_is_gone_on_with(act, connected, box, desk, order, reachable, tmp_path):
    site = connected("kvm" if act in OF_KVM else "chameleon")
    if act == Act.DELETE_VOLUME:
        box.fail_to_delete_a_volume()
    stage, wanted = tmp_path / "stage", order(node_type=None)
    deadly = Desk(Deadly(tmp_path / "state", act), FakeClock(), lambda line: None)
    child = multiprocessing.get_context("fork").Process(target=everything, args=(site, deadly, wanted, stage))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, f"{act} is not part of what the test does"

    if stage.read_text() != "release":
        lease(site, desk, wanted)
        end = datetime.fromisoformat(first_end(desk))
        if stage.read_text() == "extend":
            release.extend(site, desk, release.held(desk, wanted.name), timedelta(hours=1))
            end += timedelta(hours=1)
        assert [one.end for one in site.leases()] == [end]
        assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]
        assert site.addresses()[0].server == site.servers()[0].id
    release.release(site, desk, release.held(desk, wanted.name))
    assert left_at(site) == []


def test_a_run_that_is_killed_between_a_security_group_and_its_rule_makes_it_whole(
    connected, desk, order, reachable, monkeypatch
):
    site, holding = connected("kvm"), desk.ledger.open("llm_cc", KVM)
    with monkeypatch.context() as deadly:
        deadly.setattr(site.sdk.network, "create_security_group_rule", lambda **_: os.kill(os.getpid(), signal.SIGKILL))
        child = multiprocessing.get_context("fork").Process(target=site.open_ssh, args=(holding.mark,))
        child.start()
        child.join()
    assert [(one.mark, one.whole) for one in site.openings()] == [(holding.mark, False)]
    lease(site, desk, order(node_type=None))
    (opening,) = site.openings()
    rules = list(site.sdk.network.security_group_rules(security_group_id=opening.id, direction="ingress"))
    assert [(rule.protocol, rule.port_range_min, rule.port_range_max) for rule in rules] == [("tcp", 22, 22)]


@pytest.mark.timeout(600)
def test_two_clients_at_once_for_one_name_get_one_lease(site, desk, order, reachable, tmp_path):
    wanted, leased = order(), []
    desks = [Desk(Ledger(tmp_path / "state"), FakeClock(), lambda line: None) for _ in range(2)]
    clients = [threading.Thread(target=lambda one=one: leased.append(lease(site, one, wanted))) for one in desks]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert leased[0] == leased[1]
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TESTBEDS)
def test_two_clients_at_once_on_two_computers_get_one_lease(name, connected, order, tmp_path):
    site = connected(name)
    wanted, outcomes = order(node_type=None, start=datetime.now(UTC) + timedelta(hours=20)), []

    def client(computer: str) -> None:
        desk = Desk(Ledger(tmp_path / computer), FakeClock(), lambda line: None)
        try:
            outcomes.append(lease(site, desk, wanted, wait=False).lease.name)
        except Exception as problem:
            outcomes.append(type(problem).__name__)

    clients = [threading.Thread(target=client, args=(computer,)) for computer in ("desk", "laptop")]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert sorted(outcomes) == ["NotOurs", "llm_cc"]
    assert len(site.leases()) == 1
