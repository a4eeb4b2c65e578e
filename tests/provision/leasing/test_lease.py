"""From a wish to machines where something goes wrong on the way; the testbed is a toy."""

import pytest

from provision.errors import BootFailed, LeaseFailed, LeaseGone, NotEnough
from provision.leasing.journal import Operation
from provision.leasing.lease import lease
from tests.support.fake_site import HOUR, FakeSite, hosts_of

pytestmark = pytest.mark.usefixtures("reachable")


def boots(site):
    """Which node each server was tried on, in order."""
    return [f"{name} on {host}" for name, host in site.attempts]


def test_a_lease_in_error_is_a_failure_with_its_reason(reconciler, lease_request):
    site = FakeSite(lease_status="ERROR", fault="blazar: start_lease failed")
    with pytest.raises(LeaseFailed, match=r"is ERROR \(blazar: start_lease failed\); release it and lease anew"):
        lease(site, reconciler, lease_request())
    assert site.attempts == []


def test_a_lease_that_does_not_start_is_a_failure(reconciler, lease_request):
    with pytest.raises(LeaseFailed, match="did not start within 15 minutes of its time"):
        lease(FakeSite(lease_status="STARTING"), reconciler, lease_request())


def test_where_somebody_is_faster_another_node_is_chosen(reconciler, lease_request, said):
    site, others = FakeSite(), []

    def before(operation):
        if operation == "create lease" and not others:
            others.append(site.hosts()[0])
            site.machines = site.machines[1:]
            raise NotEnough("blazar: Not enough hosts available")

    site.before = before
    assert lease(site, reconciler, lease_request()).lease.hosts == ("2",)
    assert "blazar: Not enough hosts available: somebody was faster; choosing again" in said


def test_where_somebody_is_always_faster_it_ends(reconciler, lease_request):
    def before(operation):
        raise NotEnough("blazar: Not enough hosts available")

    site = FakeSite()
    site.before = before
    with pytest.raises(NotEnough, match="somebody else was faster 3 times; try again"):
        lease(site, reconciler, lease_request())


def test_a_boot_of_more_than_forty_minutes_is_given_up_and_tried_on_another_node(reconciler, lease_request, said):
    site = FakeSite(slow={"1"})
    assert lease(site, reconciler, lease_request()).lease.hosts == ("2",)
    assert any("did not boot on node-1; the site says: not ACTIVE after 40 minutes" in line for line in said)
    assert any("server node: BUILD, for 40 of up to 40 minutes" in line for line in said)


def test_of_several_nodes_all_are_changed_when_one_fails_and_enough_others_are_free(reconciler, lease_request):
    site = FakeSite(hosts_of(4), broken={"2"})
    leased = lease(site, reconciler, lease_request(count=2))
    assert boots(site) == ["node-1 on 1", "node-2 on 2", "node-1 on 3", "node-2 on 4"]
    assert [len(found) for found in (site.held, site.booted, leased.machines)] == [1, 2, 2]
    assert reconciler.journal.active_lease("llm_cc").failed_hosts == ("2",)


def test_of_several_nodes_one_that_fails_is_tried_again_where_not_enough_others_are_free(reconciler, lease_request):
    site = FakeSite(hosts_of(3), broken={"2"})
    with pytest.raises(BootFailed, match=r"server node-2 did not boot on node-2; .*no power.* 3 attempts; release the"):
        lease(site, reconciler, lease_request(count=2))
    assert boots(site) == ["node-1 on 1", *["node-2 on 2"] * 3]
    assert [server.name for server in site.booted] == ["node-1"]


def test_a_flavor_is_tried_again_in_its_reservation(reconciler, lease_request, said):
    site = FakeSite(hosts_of(2, flavor=True), broken={"1"})
    site.before = lambda operation: site.broken.clear() if operation == "delete server" else None
    assert lease(site, reconciler, lease_request()).machines
    assert boots(site) == ["node on 1", "node on 1"]


def test_a_lease_that_others_delete_while_a_node_fails_is_not_made_anew(reconciler, lease_request):
    site = FakeSite(broken={"1"})
    site.before = lambda operation: site.held.clear() if operation == "delete server" else None
    with pytest.raises(LeaseGone, match="deleted by others, or over"):
        lease(site, reconciler, lease_request())
    assert site.held == []


class Killed(BaseException):
    """Stands for the end of the program."""


def test_a_node_by_name_that_failed_is_replaced_also_by_a_run_after_one_that_was_killed(reconciler, lease_request):
    site, dropped = FakeSite(broken={"1"}), []

    def before(operation):
        if operation == "delete lease":
            dropped.append(operation)
        if operation == "create lease" and dropped:
            raise Killed

    site.before = before
    with pytest.raises(Killed):
        lease(site, reconciler, lease_request(node="node-1"))
    assert site.held == []
    site.before = lambda operation: None
    assert lease(site, reconciler, lease_request(node="node-1")).lease.hosts == ("2",)
    assert boots(site) == ["node on 1", "node on 2"]


def test_where_all_nodes_of_a_kind_have_failed_they_are_tried_again(reconciler, lease_request):
    site = FakeSite(hosts_of(1), broken={"1"})
    with pytest.raises(BootFailed):
        lease(site, reconciler, lease_request(node="node-1"))
    active_lease = reconciler.journal.active_lease("llm_cc")
    reconciler.journal.write("intent", active_lease, Operation.DELETE_LEASE)
    site.delete_lease(site.held[0])
    site.broken.clear()
    assert lease(site, reconciler, lease_request(node="node-1")).lease.hosts == ("1",)
    assert site.held[0].end - site.held[0].start == 3 * HOUR
