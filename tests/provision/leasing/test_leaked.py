"""Leaked resources are deleted one by one, also after a failed deletion. The site is a fake."""

import pytest

from provision.errors import BadName, NotReleased, RequestRejected
from provision.leasing.leaked import delete_leaked, leaked_resources, select_by_tag
from provision.leasing.lease import lease
from provision.leasing.release import release
from provision.models import Address, TaggedResource
from tests.support.leasing.fake_site import FakeSite

TAGS = [f"llm-testbed-00000000000{number}" for number in range(3)]


def test_a_failed_deletion_does_not_stop_the_other_deletions(reconciler, monkeypatch):
    site = FakeSite()
    site.uploaded = [TaggedResource(tag, "key", tag, site.user_id()) for tag in TAGS]
    delete = site.delete_key

    def delete_key(key):
        if key.id == TAGS[0]:
            raise RequestRejected("nova: locked")
        delete(key)

    monkeypatch.setattr(site, "delete_key", delete_key)
    with pytest.raises(NotReleased, match=rf"still at CHI@UC after release: key {TAGS[0]} \(nova: locked\)"):
        delete_leaked(site, reconciler, leaked_resources(site, reconciler))
    assert [key.id for key in site.uploaded] == TAGS[:1]


def test_resources_of_a_classmate_or_of_an_unknown_owner_are_not_listed(reconciler):
    site = FakeSite()
    mine = TaggedResource(TAGS[0], "key", TAGS[0], site.user_id())
    site.uploaded = [mine, *(TaggedResource(TAGS[1], "key", TAGS[1], owner) for owner in ("classmate", ""))]
    assert [one.active_lease.tag for one in leaked_resources(site, reconciler)] == [TAGS[0]]


def test_only_resources_that_this_journal_has_recorded_are_deleted_unless_a_tag_is_given(reconciler):
    site = FakeSite()
    opened = reconciler.journal.open_lease("llm_cc", site.name)
    reconciler.journal.write("closed", opened)
    site.uploaded = [TaggedResource(tag, "key", tag, site.user_id()) for tag in (opened.tag, TAGS[1])]
    leaked = leaked_resources(site, reconciler)
    assert [one.active_lease.tag for one in select_by_tag(leaked, [])] == [opened.tag]
    assert [one.active_lease.tag for one in select_by_tag(leaked, [TAGS[1]])] == [TAGS[1]]
    with pytest.raises(BadName, match="no leaked resource of yours has it"):
        select_by_tag(leaked, [TAGS[2]])


@pytest.mark.usefixtures("reachable")
def test_an_unattached_address_of_a_classmate_is_not_used(reconciler, lease_request):
    site = FakeSite()
    site.taken = [Address("classmates", "192.0.2.200", tag=TAGS[0]), Address("untagged", "192.0.2.201")]
    made = lease(site, reconciler, lease_request())
    assert made.machines[0].login.host not in ("192.0.2.200", "192.0.2.201")
    assert [one.server for one in site.taken if one.id in ("classmates", "untagged")] == ["", ""]


@pytest.mark.usefixtures("reachable")
def test_a_release_removes_only_the_host_keys_of_its_machines(reconciler, lease_request):
    site = FakeSite()
    made = lease(site, reconciler, lease_request())
    pinned = reconciler.journal.known_hosts
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJVJFYSXEwJ4Xr0kUHcQ4Hm9fXvQ1C0n0s5hGmLrM0Tn"
    pinned.write_text(f"{made.machines[0].login.alias} {key}\nanother {key}\n")
    release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert pinned.read_text() == f"another {key}\n"
