"""The kinds of resources of a lease: how each is deleted, and how what remains is named. The site is a fake."""

from dataclasses import replace

import pytest

from provision.errors import RequestRejected, Unreachable
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.leaked import LeakedResources, leaked_resources, select_by_tag
from provision.leasing.resources import (
    all_kinds,
    delete_tagged,
    list_resources,
    list_resources_once,
    possible_kinds,
    server_kinds,
)
from provision.models import Server, TaggedResource, Volume
from tests.support.leasing.fake_site import NOW, FakeSite

TAG = "llm-testbed-000000000000"
RECORD = ActiveLease("llm_cc", TAG, "CHI@UC", "")


class LingeringSite(FakeSite):
    """A site whose deleted servers stay listed as ``deleting`` for ``lists`` more lists."""

    lists = 3

    def servers(self):
        deleting = any(server.status == "deleting" for server in self.booted)
        self.lists -= deleting
        if self.lists < 0:
            self.booted = [server for server in self.booted if server.status != "deleting"]
        return super().servers()

    def delete_server(self, server):
        self.before("delete server")
        assert server.status != "deleting", "deleted twice"
        self.booted = [replace(one, status="deleting") if one.id == server.id else one for one in self.booted]


class FullSite(FakeSite):
    """A site with all kinds of resources."""

    def volumes(self):
        return [Volume("v", "node", "available", TAG, self.user_id())]

    def create_volume(self, name, tag, image_id):
        raise AssertionError("nothing is created")

    def delete_volume(self, volume):
        raise AssertionError("nothing is deleted")

    create_security_group = delete_security_group = delete_volume
    create_lease_credential = delete_lease_credential = try_lease_credential = delete_volume

    def security_groups(self):
        return [TaggedResource("g", "security group", TAG)]

    def lease_credentials(self):
        return [TaggedResource("c", "credential", TAG)]


@pytest.fixture
def seconds(reconciler):
    return lambda: (reconciler.clock.now() - NOW).total_seconds()


def test_a_deletion_of_a_server_waits_until_the_server_is_no_longer_listed(reconciler, seconds, messages):
    site = LingeringSite()
    site.booted = [Server("1", "node", "ACTIVE", TAG), Server("2", "node", "ACTIVE")]
    delete_tagged(reconciler, RECORD, server_kinds(site)[0])
    assert [server.id for server in site.booted] == ["2"]
    assert seconds() == 2 * 3
    assert messages == ["servers being deleted: waiting, for 0 of up to 10 minutes"]


def test_for_a_server_that_is_being_deleted_a_deletion_waits_ten_minutes_and_sends_no_request(reconciler, seconds):
    site = LingeringSite()
    site.lists = 10**6
    site.booted = [Server("1", "node", "deleting", TAG)]
    delete_tagged(reconciler, RECORD, server_kinds(site)[0])
    assert seconds() == 602


def test_only_servers_and_volumes_are_still_listed_for_a_while_after_their_deletion():
    kinds = {kind.name: kind.stays_listed for kind in all_kinds(FullSite())}
    assert kinds == {
        "lease": False,
        "server": True,
        "volume": True,
        "address": False,
        "key": False,
        "security group": False,
        "credential": False,
    }
    assert [kind.name for kind in all_kinds(FakeSite())] == ["lease", "server", "address", "key"]


def test_only_the_server_with_the_given_name_is_deleted(reconciler):
    site = FakeSite()
    site.booted = [Server("1", "node-1", "ACTIVE", TAG), Server("2", "node-2", "ACTIVE", TAG)]
    delete_tagged(reconciler, RECORD, server_kinds(site)[0], "node-1")
    assert [server.id for server in site.booted] == ["2"]


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        (RECORD, False),
        (replace(RECORD, intents={Operation.CREATE_CREDENTIAL: {}}), True),
        (replace(RECORD, outcomes={Operation.CREATE_CREDENTIAL: {}}), True),
        (replace(RECORD, outcomes={Operation.CREATE_LEASE: {}}), False),
        (replace(RECORD, name=""), True),
    ],
)
def test_credentials_are_listed_only_for_a_lease_that_may_have_a_credential(record, asked):
    names = [kind.name for kind in possible_kinds(record, all_kinds(FullSite()))]
    assert ("credential" in names) == asked
    assert names[:6] == ["lease", "server", "volume", "address", "key", "security group"]


def test_remaining_resources_and_services_that_do_not_answer_are_named(reconciler, seconds, monkeypatch):
    site = FullSite()
    site.uploaded = [TaggedResource("k", "key", TAG), TaggedResource("l", "key", TAG, "classmate")]

    def fail(problem):
        raise problem

    monkeypatch.setattr(site, "addresses", lambda: fail(Unreachable("neutron does not answer")))
    expected = ["volume v", "address not known (neutron does not answer)", "key k", "security group g"]
    assert list_resources_once(site, RECORD) == expected
    assert seconds() == 0
    assert list_resources(site, reconciler, RECORD) == expected
    assert seconds() > 60
    monkeypatch.setattr(site, "addresses", lambda: fail(RequestRejected("no")))
    assert "address not known (no)" in list_resources_once(site, RECORD)


def test_leaked_resources_are_named_by_tag_and_those_of_an_active_lease_are_not(reconciler):
    site = FakeSite()
    past, now = (reconciler.journal.open_lease(name, site.name) for name in ("past", "now"))
    reconciler.journal.write("closed", past)
    site.uploaded = [TaggedResource(f"key-{tag[-3:]}", "key", tag, "1") for tag in (past.tag, now.tag, TAG)]
    site.uploaded.append(TaggedResource("untagged", "key", "", "1"))
    site.booted = [Server("s", "node", "ACTIVE", TAG, owner="1")]
    assert {(one.active_lease.tag, one.resources, one.in_journal) for one in leaked_resources(site, reconciler)} == {
        (past.tag, (f"key key-{past.tag[-3:]}",), True),
        (TAG, ("server s", "key key-000"), False),
    }


def test_leaked_resources_are_selected_in_the_order_of_the_given_tags():
    leaked = [LeakedResources(replace(RECORD, tag=tag), (), tag == "a") for tag in "abc"]
    assert [one.active_lease.tag for one in select_by_tag(leaked, ["c", "b"])] == ["c", "b"]
    assert [one.active_lease.tag for one in select_by_tag(leaked, [])] == ["a"]
    assert select_by_tag([], []) == []
