"""Leasing at a fake site, with faults in single steps."""

from dataclasses import replace

import pytest

from provision.choices import DISK_IMAGE
from provision.errors import (
    BootFailed,
    ForeignLease,
    LeaseFailed,
    LeaseGone,
    NoAddress,
    NotEnoughHosts,
    RequestRejected,
)
from provision.leasing.journal import Operation
from provision.leasing.lease import lease, planned_calls, planned_calls_without_account
from provision.leasing.release import release
from provision.leasing.request import EndWhenIdle
from provision.models import Address, Host, Server
from tests.support.leasing.fake_site import HOUR, NOW, FakeSite, hosts_of

pytestmark = pytest.mark.usefixtures("reachable")


def booted_nodes(site):
    """Return the node of each boot attempt, in order."""
    return [f"{name} on {host}" for name, host in site.attempts]


def test_a_lease_with_the_status_error_raises_an_error_with_the_reason(reconciler, lease_request):
    site = FakeSite(lease_status="ERROR", fault="blazar: start_lease failed")
    with pytest.raises(LeaseFailed, match=r"is ERROR \(blazar: start_lease failed\); release it and lease again"):
        lease(site, reconciler, lease_request())
    assert site.attempts == []


def test_a_lease_that_does_not_start_raises_an_error(reconciler, lease_request):
    with pytest.raises(LeaseFailed, match="did not start within 15 minutes of its start time"):
        lease(FakeSite(lease_status="STARTING"), reconciler, lease_request())


def test_if_somebody_else_reserves_the_chosen_node_first_another_node_is_chosen(reconciler, lease_request, messages):
    site = FakeSite()
    others: list[Host] = []

    def fail_some_operations(operation):
        if operation == "create lease" and not others:
            others.append(site.hosts()[0])
            site.machines = site.machines[1:]
            raise NotEnoughHosts("blazar: Not enough hosts available")

    site.before = fail_some_operations
    assert lease(site, reconciler, lease_request()).lease.hosts == ("2",)
    assert (
        "blazar: Not enough hosts available: somebody else reserved this slot first; choosing another slot" in messages
    )


def test_leasing_fails_after_three_nodes_that_somebody_else_reserved_first(reconciler, lease_request):
    def fail_some_operations(operation):
        raise NotEnoughHosts("blazar: Not enough hosts available")

    site = FakeSite()
    site.before = fail_some_operations
    with pytest.raises(
        NotEnoughHosts, match="somebody else reserved the chosen slot first, 3 times; run the command again"
    ):
        lease(site, reconciler, lease_request())


def test_a_boot_of_more_than_forty_minutes_is_retried_on_another_node(reconciler, lease_request, messages):
    site = FakeSite(slow={"1"})
    assert lease(site, reconciler, lease_request()).lease.hosts == ("2",)
    assert any("did not boot on node-1; the site's reason: not ACTIVE after 40 minutes" in line for line in messages)
    assert any("server node: BUILD, for 40 of up to 40 minutes" in line for line in messages)


def test_all_nodes_of_a_lease_are_replaced_if_one_fails_and_enough_others_are_free(reconciler, lease_request):
    site = FakeSite(hosts_of(4), broken={"2"})
    leased = lease(site, reconciler, lease_request(host_count=2))
    assert booted_nodes(site) == ["node-1 on 1", "node-2 on 2", "node-1 on 3", "node-2 on 4"]
    assert [len(found) for found in (site.held, site.booted, leased.machines)] == [1, 2, 2]
    assert reconciler.journal.active_lease("llm_cc").failed_hosts == ("2",)


def test_a_failed_node_is_retried_if_not_enough_others_are_free(reconciler, lease_request):
    site = FakeSite(hosts_of(3), broken={"2"})
    with pytest.raises(BootFailed, match=r"server node-2 did not boot on node-2; .*no power.* 3 attempts; release the"):
        lease(site, reconciler, lease_request(host_count=2))
    assert booted_nodes(site) == ["node-1 on 1", *["node-2 on 2"] * 3]
    assert [server.name for server in site.booted] == ["node-1"]


def test_an_instance_of_a_flavor_that_fails_is_retried_in_the_same_reservation(reconciler, lease_request, messages):
    site = FakeSite(hosts_of(2, is_flavor=True), broken={"1"})
    site.before = lambda operation: site.broken.clear() if operation == "delete server" else None
    assert lease(site, reconciler, lease_request()).machines
    assert booted_nodes(site) == ["node on 1", "node on 1"]


def test_a_lease_deleted_by_others_while_a_node_fails_is_not_recreated(reconciler, lease_request):
    site = FakeSite(broken={"1"})
    site.before = lambda operation: site.held.clear() if operation == "delete server" else None
    with pytest.raises(LeaseGone, match="somebody else deleted it, or it has ended"):
        lease(site, reconciler, lease_request())
    assert site.held == []


class Killed(BaseException):
    """Exception that represents the death of the program."""


def test_the_command_after_a_killed_one_still_replaces_a_failed_node_given_by_name(reconciler, lease_request):
    site, dropped = FakeSite(broken={"1"}), []

    def fail_some_operations(operation):
        if operation == "delete lease":
            dropped.append(operation)
        if operation == "create lease" and dropped:
            raise Killed

    site.before = fail_some_operations
    with pytest.raises(Killed):
        lease(site, reconciler, lease_request(node="node-1"))
    assert site.held == []
    site.before = lambda operation: None
    assert lease(site, reconciler, lease_request(node="node-1")).lease.hosts == ("2",)
    assert booted_nodes(site) == ["node on 1", "node on 2"]


def test_failed_nodes_are_retried_if_no_others_of_their_type_exist(reconciler, lease_request):
    site = FakeSite(hosts_of(1), broken={"1"})
    with pytest.raises(BootFailed):
        lease(site, reconciler, lease_request(node="node-1"))
    active_lease = reconciler.journal.active_lease("llm_cc")
    reconciler.journal.write("intent", active_lease, Operation.DELETE_LEASE)
    site.delete_lease(site.held[0])
    site.broken.clear()
    assert lease(site, reconciler, lease_request(node="node-1")).lease.hosts == ("1",)
    assert site.held[0].end - site.held[0].start == 3 * HOUR


def test_an_unattached_address_of_the_project_is_not_used(reconciler, lease_request):
    site = FakeSite()
    site.taken = [Address("theirs", "192.0.2.99")]
    (machine,) = lease(site, reconciler, lease_request()).machines
    assert machine.login.host != "192.0.2.99"
    release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert site.taken == [Address("theirs", "192.0.2.99")]


def test_without_a_free_address_the_unattached_ones_are_named_but_not_used(reconciler, lease_request, monkeypatch):
    site = FakeSite()
    site.taken = [Address("theirs", "192.0.2.99")]
    monkeypatch.setattr(
        site, "allocate_address", lambda tag: (_ for _ in ()).throw(NoAddress("no floating IP is free"))
    )
    with pytest.raises(NoAddress, match=r"is free; unattached addresses of the project: 192\.0\.2\.99; release yours"):
        lease(site, reconciler, lease_request())
    assert site.taken[0].server == ""


def test_a_server_of_a_classmate_that_has_a_copy_of_our_tag_is_not_deleted(reconciler, lease_request):
    site = FakeSite()
    lease(site, reconciler, lease_request())
    active_lease = reconciler.journal.active_lease("llm_cc")
    copy = Server("copy", "theirs", "ACTIVE", active_lease.tag, owner="2")
    site.booted.append(copy)
    release(site, reconciler, active_lease)
    assert site.remaining_resources() == [copy]


CALLS = [
    "nova: upload the public key of key",
    "nova: create server node with image {image}",
    "neutron: allocate one floating IP per server and attach it: node",
    "ssh: log in to node",
]
VIRTUAL = ["neutron: create a security group that admits SSH", "cinder: create a volume for node"]
IDLE = ["keystone: create a credential that can only end this lease"]


def calls(image, virtual=False, idle=False):
    """Return the planned calls after the reservation."""
    first, *rest = [call.format(image=image) for call in CALLS]
    return [first, *(VIRTUAL if virtual else []), *rest, *(IDLE if idle else [])]


def test_a_dry_run_lists_the_api_calls_and_makes_none(reconciler, lease_request):
    site = FakeSite()
    slot, *rest = planned_calls(site, reconciler, lease_request())
    assert slot.startswith("blazar: create lease llm_cc of node-1 (gpu at CHI@UC), 2026-11-21 12:00 UTC to ")
    assert rest == calls(f"{DISK_IMAGE} (image)")
    assert (site.remaining_resources(), reconciler.journal.active_leases()) == ([], {})
    lease(site, reconciler, lease_request())
    assert planned_calls(site, reconciler, lease_request()) == ["lease llm_cc is active: resume it"]


@pytest.mark.parametrize(("site", "virtual"), [("CHI@UC", False), ("KVM@TACC", True)])
@pytest.mark.parametrize("end_when_idle", [None, EndWhenIdle(HOUR)])
def test_a_dry_run_without_an_account_names_what_is_requested(lease_request, site, virtual, end_when_idle):
    wanted, *rest = planned_calls_without_account(site, replace(lease_request(), end_when_idle=end_when_idle))
    assert wanted == "blazar: create lease llm_cc of 1 node with at least 1 GPU, for 3h, start: now"
    assert rest == calls(DISK_IMAGE, virtual, bool(end_when_idle))


@pytest.mark.parametrize(("wait", "begins", "booted"), [(False, 1, 0), (False, 0, 1), (True, 1, 1)])
def test_a_lease_that_starts_later_is_only_reserved_if_the_command_does_not_wait(
    reconciler, lease_request, wait, begins, booted
):
    site = FakeSite()
    wanted = replace(lease_request(start=NOW + begins * HOUR), starts_now=False)
    leased = lease(site, reconciler, wanted, wait=wait)
    assert [len(found) for found in (site.held, site.booted, leased.machines)] == [1, booted, booted]
    assert [host.name for host in leased.hosts] == ["node-1"]


def test_a_name_that_is_active_at_another_site_is_rejected(reconciler, lease_request):
    lease(FakeSite(), reconciler, lease_request())
    other = FakeSite(name="CHI@TACC")
    with pytest.raises(ForeignLease, match="lease llm_cc is active at CHI@UC; release it there first"):
        lease(other, reconciler, lease_request())
    assert other.held == []


def test_a_lease_that_is_resumed_is_reported_with_the_time_of_its_creation(reconciler, lease_request, messages):
    site = FakeSite()
    lease(site, reconciler, lease_request())
    assert not any("resuming" in line for line in messages)
    since = reconciler.journal.active_lease("llm_cc").since
    lease(site, reconciler, lease_request())
    assert f"lease llm_cc is active since {since}; resuming it" in messages


def test_no_lease_is_created_if_it_should_end_itself_and_cannot(reconciler, lease_request):
    site = FakeSite()
    with pytest.raises(RequestRejected, match="CHI@UC cannot limit a credential to one lease"):
        lease(site, reconciler, replace(lease_request(), end_when_idle=EndWhenIdle(HOUR)))
    assert (site.held, reconciler.journal.active_leases()) == ([], {})


def test_an_interrupted_lease_is_resumed_although_its_image_no_longer_exists(reconciler, lease_request, monkeypatch):
    """The requirements of a boot are checked only before the first request."""
    site = FakeSite()
    site.before = lambda operation: interrupt() if operation == "create server" else None
    with pytest.raises(Killed):
        lease(site, reconciler, lease_request())
    site.before = lambda operation: None
    monkeypatch.setattr(site, "check_boot_requirements", interrupt)
    assert lease(site, reconciler, lease_request()).machines


def interrupt():
    raise Killed
