"""A lease that ends itself: its release deletes its credential, and messages explain its end. The site is a fake."""

from dataclasses import replace
from datetime import timedelta

import pytest

from provision.errors import NotReleased, RequestRejected, Unreachable
from provision.leasing import account
from provision.leasing.account import require_lease_credentials
from provision.leasing.journal import Operation
from provision.leasing.release import lease_deletion_message, release
from provision.leasing.request import (
    EndWhenIdle,
    end_when_idle_data,
    end_when_idle_of,
    lease_data,
    requested_end_when_idle,
)
from provision.models import Lease, TaggedResource
from tests.support.leasing.fake_site import HOUR, NOW, FakeSite

END_WHEN_IDLE = EndWhenIdle(timedelta(minutes=30))


class FakeCredentialSite(FakeSite):
    """A fake site with credentials of leases."""

    def __post_init__(self):
        super().__post_init__()
        self.credentials = []

    def lease_credentials(self):
        self.before("list credentials")
        return list(self.credentials)

    def create_lease_credential(self, tag, lease):
        raise AssertionError("release creates nothing")

    def delete_lease_credential(self, credential):
        self.before("delete credential")
        self.credentials.remove(credential)

    def try_lease_credential(self):
        self.before("try")


@pytest.fixture
def site(monkeypatch):
    site = FakeCredentialSite()
    monkeypatch.setattr(account, "connect_to", lambda *_: site)
    return site


@pytest.fixture
def active_lease(site, reconciler):
    """Return the record of an active lease in the journal."""
    opened = reconciler.journal.open_lease("llm_cc", site.name, site.account)
    site.held = [Lease("1", "llm_cc", "ACTIVE", NOW - HOUR, NOW + HOUR, ("r",), ("1",), opened.tag)]
    reconciler.journal.write("done", opened, Operation.CREATE_LEASE, **lease_data(site.held[0]))
    return lambda: reconciler.journal.active_lease("llm_cc")


def enable_end_when_idle(site, reconciler, record, end_when_idle=END_WHEN_IDLE):
    site.credentials = [TaggedResource("c", "credential", record.tag, site.user_id())]
    reconciler.journal.write("done", record, Operation.CREATE_CREDENTIAL, id="c", **end_when_idle_data(end_when_idle))


def test_the_journal_records_when_a_lease_ends_itself_and_where_its_results_go(
    site, reconciler, active_lease, tmp_path
):
    assert end_when_idle_of(active_lease()) is None
    end_when_idle = EndWhenIdle(HOUR, "me@host:there", tmp_path / "key")
    enable_end_when_idle(site, reconciler, active_lease(), end_when_idle)
    assert end_when_idle_of(active_lease()) == end_when_idle


def test_a_lease_whose_setup_was_interrupted_does_not_end_itself_although_that_was_requested(reconciler, active_lease):
    reconciler.journal.write("intent", active_lease(), Operation.CREATE_CREDENTIAL, **end_when_idle_data(END_WHEN_IDLE))
    reconciler.journal.write("done", active_lease(), Operation.CREATE_CREDENTIAL, id="c")
    assert (end_when_idle_of(active_lease()), requested_end_when_idle(active_lease())) == (None, END_WHEN_IDLE)


def test_a_lease_is_reported_as_ended_or_deleted_only_if_the_site_no_longer_lists_it(site, reconciler, active_lease):
    enable_end_when_idle(site, reconciler, active_lease())
    assert lease_deletion_message(reconciler, active_lease()) == ""
    held = site.held
    site.held = [replace(held[0], status="TERMINATED")]
    assert lease_deletion_message(reconciler, active_lease()) == ""
    site.held = []
    assert lease_deletion_message(reconciler, active_lease()).startswith(
        "was deleted: either it ended itself after 30m without work (all results were fetched), or somebody deleted"
    )


def test_the_message_about_a_lease_that_ended_itself_names_where_its_results_were_copied(
    site, reconciler, active_lease
):
    enable_end_when_idle(site, reconciler, active_lease(), EndWhenIdle(HOUR, "me@host:there"))
    site.held = []
    assert lease_deletion_message(reconciler, active_lease()).endswith(
        "; to fetch results: rsync -a me@host:there/ results/; then run the command again for the remaining rows"
    )


def test_there_is_no_message_about_a_lease_that_ended_itself_if_this_program_deleted_it(site, reconciler, active_lease):
    enable_end_when_idle(site, reconciler, active_lease())
    reconciler.journal.write("intent", active_lease(), Operation.DELETE_LEASE, id="1")
    site.held = []
    assert lease_deletion_message(reconciler, active_lease()) == ""


def test_a_lease_that_was_not_set_up_to_end_itself_is_not_reported_to_have_ended_itself(site, reconciler, active_lease):
    site.held = []
    assert lease_deletion_message(reconciler, active_lease()) == ""


def test_a_lease_whose_site_does_not_answer_is_not_reported_to_have_ended_itself(
    site, reconciler, active_lease, monkeypatch
):
    def fail_to_list_leases():
        raise Unreachable("blazar does not answer")

    enable_end_when_idle(site, reconciler, active_lease())
    monkeypatch.setattr(site, "leases", fail_to_list_leases)
    assert lease_deletion_message(reconciler, active_lease()) == ""


def test_a_release_deletes_the_credential_of_the_lease(site, reconciler, active_lease):
    enable_end_when_idle(site, reconciler, active_lease())
    release(site, reconciler, active_lease())
    assert (site.credentials, site.remaining_resources()) == ([], [])


def test_a_credential_that_cannot_be_deleted_is_named(site, reconciler, active_lease):
    def reject(operation):
        if operation == "delete credential":
            raise RequestRejected("keystone: no")

    enable_end_when_idle(site, reconciler, active_lease())
    site.before = reject
    with pytest.raises(NotReleased, match=r"credential c \(keystone: no\)"):
        release(site, reconciler, active_lease())
    assert site.held == []


def test_a_lease_that_never_had_a_credential_is_released_without_keystone(site, reconciler, active_lease):
    def fail_to_list_credentials(operation):
        if operation == "list credentials":
            raise Unreachable("keystone does not answer")

    site.before = fail_to_list_credentials
    release(site, reconciler, active_lease())
    assert site.remaining_resources() == []


def test_the_option_end_when_idle_is_rejected_at_a_site_without_credentials_for_leases(site, reconciler):
    require_lease_credentials(site, reconciler)
    with pytest.raises(RequestRejected, match="CHI@UC cannot limit a credential to one lease"):
        require_lease_credentials(FakeSite(), reconciler)
