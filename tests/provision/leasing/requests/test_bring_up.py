"""From a lease to machines: servers that disappear, logins at their limits, addresses. The site is a fake."""

from dataclasses import replace

import pytest

from provision.errors import BootFailed, LeaseGone, LoginRejected, NoAddress, NotReached, RequestRejected
from provision.leasing import boot
from provision.leasing.lease import lease
from provision.models import Address, TaggedResource
from tests.support.leasing.fake_site import NOW, FakeSite, hosts_of


class GroupSite(FakeSite):
    """A site with security groups, of which one with another tag and one that is incomplete exist."""

    def __post_init__(self):
        super().__post_init__()
        self.opened = []

    def security_groups(self):
        return [TaggedResource("0", "security group", "theirs"), *self.opened]

    def create_security_group(self, tag):
        self.opened.append(TaggedResource("2", "security group", tag))
        return self.opened[-1]

    def delete_security_group(self, group):
        self.opened.remove(group)


class DisappearingSite(FakeSite):
    """A site whose first server stays in BUILD and is deleted by somebody when it is listed the second time."""

    def __post_init__(self):
        super().__post_init__()
        self.lists, self.with_lease = 0, False

    def servers(self):
        if self.booted and not self.lists:
            self.booted[0] = replace(self.booted[0], status="BUILD")
        self.lists += bool(self.booted)
        if self.lists == 2:
            self.booted = []
            self.held = [] if self.with_lease else self.held
        return super().servers()


@pytest.mark.usefixtures("reachable")
def test_a_server_that_somebody_deletes_while_it_boots_is_created_again(reconciler, lease_request, messages):
    site = DisappearingSite()
    assert lease(site, reconciler, lease_request()).lease.hosts == ("1",)
    assert [host for _, host in site.attempts] == ["1", "1"]
    assert any(
        line.startswith("attempt 1 of 3: server node did not boot on node-1; the site's reason: deleted by somebody")
        for line in messages
    )


@pytest.mark.usefixtures("reachable")
def test_a_server_that_disappears_with_its_lease_is_not_created_again(reconciler, lease_request):
    site = DisappearingSite()
    site.with_lease = True
    with pytest.raises(LeaseGone):
        lease(site, reconciler, lease_request())
    assert len(site.attempts) == 1


@pytest.mark.usefixtures("reachable")
def test_every_failed_server_is_reported_and_the_error_has_the_worst_of_the_causes(
    reconciler, lease_request, monkeypatch
):
    site = FakeSite(hosts_of(4), broken={"1", "2"})
    faults = {"1": "no power", "2": "Quota exceeded for instances"}
    create = site.create_server

    def create_server(name, tag, reservation_id, source):
        made = create(name, tag, reservation_id, source)
        site.booted[-1] = replace(made, fault=faults[reservation_id[-1]])
        return site.booted[-1]

    monkeypatch.setattr(site, "create_server", create_server)
    with pytest.raises(BootFailed) as failed:
        lease(site, reconciler, lease_request(host_count=2))
    assert str(failed.value) == (
        "server node-1 did not boot on node-1; the site's reason: no power; server node-2 did not boot on node-2; "
        "the site's reason: Quota exceeded for instances; "
        "delete servers of the project, or ask the site's help desk for a larger quota"
    )
    assert len(site.attempts) == 2
    assert reconciler.journal.active_lease("llm_cc").failed_hosts == ("1",)
    assert site.booted == []


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize(("complete", "opened"), [(True, 1), (False, 2)])
def test_the_security_group_is_created_once_unless_the_first_attempt_was_interrupted(
    reconciler, lease_request, complete, opened
):
    site = GroupSite()
    lease(site, reconciler, lease_request())
    assert [group.tag for group in site.opened] == [reconciler.journal.active_lease("llm_cc").tag]
    site.opened = [replace(group, complete=complete) for group in site.opened]
    lease(site, reconciler, lease_request())
    assert len(site.opened) == opened


@pytest.mark.usefixtures("reachable")
def test_a_second_lease_command_keeps_the_server_and_its_address_and_key(reconciler, lease_request):
    site = FakeSite()
    first = lease(site, reconciler, lease_request())
    again = lease(site, reconciler, lease_request())
    assert (again.machines, again.image_id) == (first.machines, "image")
    assert [len(kind) for kind in (site.attempts, site.taken, site.uploaded)] == [1, 1, 1]
    assert [host.id for host in again.hosts] == ["1"]


def reject_until(reconciler, limit_s, problem):
    """Return a fake login that fails with this problem until that many seconds have passed."""

    def attempt(login):
        if (reconciler.clock.now() - NOW).total_seconds() <= limit_s:
            raise problem

    return attempt


@pytest.mark.parametrize(
    ("problem", "limit_s"),
    [(LoginRejected("Permission denied"), 300), (NotReached("No route to host"), 1200)],
)
def test_failed_logins_are_repeated_only_until_the_time_limit(reconciler, lease_request, monkeypatch, problem, limit_s):
    monkeypatch.setattr(boot, "try_login", reject_until(reconciler, limit_s, problem))
    assert lease(FakeSite(), reconciler, lease_request()).machines
    monkeypatch.setattr(boot, "try_login", reject_until(reconciler, 9 * limit_s, problem))
    reconciler.clock.at = NOW
    with pytest.raises(type(problem), match=str(problem)):
        lease(FakeSite(), reconciler, replace(lease_request(), name="other"))
    assert (reconciler.clock.now() - NOW).total_seconds() == limit_s + 10


@pytest.mark.usefixtures("reachable")
def test_attaching_an_address_is_tried_three_times(reconciler, lease_request, messages, monkeypatch):
    site = FakeSite()
    tried = []

    def attach_address(address, server):
        tried.append(address)
        raise RequestRejected("in use")

    monkeypatch.setattr(site, "attach_address", attach_address)
    with pytest.raises(
        NoAddress,
        match="no address could be attached to node: other programs took 3 addresses in a row; run the command again",
    ):
        lease(site, reconciler, lease_request())
    assert len(tried) == 3
    assert messages.count("in use; trying another address") == 3


@pytest.mark.usefixtures("reachable")
def test_an_address_that_this_lease_allocated_before_is_used(reconciler, lease_request):
    site = FakeSite()
    tag = reconciler.journal.open_lease("llm_cc", site.name, site.account).tag
    site.taken = [
        Address("1", "192.0.2.91", server="another", tag=tag),
        Address("2", "192.0.2.92", tag=tag),
        Address("3", "192.0.2.93"),
    ]
    (machine,) = lease(site, reconciler, lease_request()).machines
    assert machine.login.host == "192.0.2.92"
    assert len(site.taken) == 3


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize(
    ("taken", "ending"),
    [([], ""), ([Address("1", "192.0.2.91", server="another")], ""), ([Address("1", "192.0.2.92")], "192.0.2.92")],
)
def test_if_no_address_is_free_only_the_unattached_ones_are_named(
    reconciler, lease_request, monkeypatch, taken, ending
):
    site = FakeSite()
    site.taken = taken

    def allocate_address(tag):
        raise NoAddress("no floating IP is free")

    monkeypatch.setattr(site, "allocate_address", allocate_address)
    note = f"; unattached addresses of the project: {ending}; release yours: openstack floating ip delete"
    with pytest.raises(NoAddress) as failed:
        lease(site, reconciler, lease_request())
    assert str(failed.value) == "no floating IP is free" + (note if ending else "")
