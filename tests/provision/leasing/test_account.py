"""The account of a lease: another account neither changes it nor takes it for deleted. The site is a fake."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from provision.errors import NoCredentials, OtherAccount
from provision.leasing import account as accounts
from provision.leasing.account import connect_to_site_of, require_lasting_credential
from provision.leasing.lease import lease, planned_calls
from provision.leasing.release import extend, lease_snapshot, release, release_on_exit
from provision.models import Credential, Requirements
from tests.support.leasing.fake_site import HOUR, IDENTITY, NOW, FakeSite

pytestmark = pytest.mark.usefixtures("reachable")
PROJECT = replace(IDENTITY, project="CHI-000002", project_id="p2")
OTHERS = {
    "project": PROJECT,
    "user": replace(IDENTITY, user="classmate", user_id="2"),
    "region": replace(IDENTITY, region="CHI@TACC"),
    "endpoint": replace(IDENTITY, endpoint="https://chi.tacc.chameleoncloud.org:5000/v3"),
}


@pytest.fixture
def lease_of_first_account(reconciler, lease_request):
    """Lease with one account; return the site and the record."""
    site = FakeSite()
    lease(site, reconciler, lease_request())
    return site, reconciler.journal.active_lease("llm_cc")


def seen_by(identity, site):
    """Return the site as another account sees it: it lists nothing of the first one."""
    return FakeSite(account=identity, name=site.name)


def test_the_journal_has_the_account_of_a_lease_and_no_secret(lease_of_first_account, reconciler):
    assert lease_of_first_account[1].account == IDENTITY
    written = json.loads((reconciler.journal.folder / "ledger.jsonl").read_text().splitlines()[0])
    assert set(written["data"]["account"]) == {
        *("user", "user_id", "project", "project_id", "endpoint", "region", "entry")
    }


@pytest.mark.parametrize("other", OTHERS)
def test_with_another_account_a_lease_is_neither_shown_nor_extended_nor_released(
    lease_of_first_account, reconciler, other
):
    site, active_lease = lease_of_first_account
    theirs = seen_by(OTHERS[other], site)
    for act in (
        lambda: lease_snapshot(theirs, reconciler, active_lease),
        lambda: extend(theirs, reconciler, active_lease, HOUR),
        lambda: release(theirs, reconciler, active_lease),
    ):
        with pytest.raises(
            OtherAccount, match="created by cc in project CHI-000001 at CHI@UC, but the current account is"
        ):
            act()
    assert reconciler.journal.active_lease("llm_cc") == active_lease
    assert len(site.held) == 1


def test_another_account_cannot_lease_under_a_used_name(lease_of_first_account, reconciler, lease_request):
    theirs = seen_by(PROJECT, lease_of_first_account[0])
    for act in (lease, planned_calls):
        with pytest.raises(
            OtherAccount, match="use the account that created the lease: testbed --cloud uc, or OS_CLOUD=uc"
        ):
            act(theirs, reconciler, lease_request())
    assert theirs.remaining_resources() == []


def test_the_end_of_a_command_does_not_release_a_lease_of_another_account(
    lease_of_first_account, reconciler, lease_request
):
    theirs = seen_by(PROJECT, lease_of_first_account[0])
    with pytest.raises(OtherAccount), release_on_exit(theirs, reconciler, "llm_cc"):
        lease(theirs, reconciler, lease_request())
    assert reconciler.journal.active_lease("llm_cc")


def test_an_account_from_environment_variables_is_named_by_its_project(reconciler):
    made = replace(IDENTITY, entry="envvars")
    active_lease = reconciler.journal.open_lease("llm_cc", "CHI@UC", made)
    with pytest.raises(OtherAccount, match="source the RC file of project CHI-000001"):
        release(FakeSite(account=PROJECT), reconciler, active_lease)


def test_a_lease_can_be_released_with_another_entry_and_another_spelling_of_its_account(
    lease_of_first_account, reconciler
):
    site, active_lease = lease_of_first_account
    site.account = replace(IDENTITY, entry="envvars", endpoint="https://chi.uc.chameleoncloud.org:5000/v3/")
    release(site, reconciler, active_lease)
    assert site.remaining_resources() == []


def without_account(reconciler):
    """Let the journal be of an earlier version."""
    file = reconciler.journal.folder / "ledger.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["data"] = {}
    for line in lines:
        del line["sum"]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return reconciler.journal.active_lease("llm_cc")


def test_the_account_is_added_to_a_record_without_one_when_its_lease_is_queried(lease_of_first_account, reconciler):
    old = without_account(reconciler)
    assert old.account is None
    assert old.outcomes == lease_of_first_account[1].outcomes
    lease_snapshot(lease_of_first_account[0], reconciler, old)
    assert reconciler.journal.active_lease("llm_cc").account == IDENTITY


def test_a_record_without_an_account_whose_lease_is_not_listed_stays_open_until_the_lease_would_end(
    lease_of_first_account, reconciler
):
    old, theirs = without_account(reconciler), seen_by(PROJECT, lease_of_first_account[0])
    with pytest.raises(
        OtherAccount, match=r"does not record which account created it.* can be released here after 2026-11-21"
    ):
        release(theirs, reconciler, old)
    reconciler.clock.sleep(4 * 3600)
    release(theirs, reconciler, old)
    assert reconciler.journal.active_leases() == {}


def test_of_several_account_entries_the_one_that_created_the_lease_is_preferred(
    lease_of_first_account, reconciler, monkeypatch
):
    asked = []

    def connect_to(*names):
        asked.append(names)
        return lease_of_first_account[0]

    monkeypatch.setattr(accounts, "connect_to", connect_to)
    assert connect_to_site_of(reconciler, lease_of_first_account[1]) is lease_of_first_account[0]
    assert asked == [("CHI@UC", "uc")]


def test_with_a_restricted_credential_leasing_is_rejected_and_releasing_works(
    lease_of_first_account, reconciler, lease_request
):
    site, active_lease = lease_of_first_account
    site.limits = Credential(restricted=True)
    with pytest.raises(NoCredentials, match="restricted, and a lease needs an unrestricted one"):
        lease(site, reconciler, replace(lease_request(), name="llm_other"))
    assert "llm_other" not in reconciler.journal.active_leases()
    release(site, reconciler, active_lease)
    assert site.remaining_resources() == []


def test_a_credential_that_expires_together_with_the_lease_is_not_reported(reconciler, lease_request, messages):
    for ends in (NOW + 3 * HOUR, None):
        lease(FakeSite(limits=Credential(expires_at=ends)), reconciler, replace(lease_request(), name=f"until-{ends}"))
    assert not any("log in again" in line for line in messages)


def test_a_credential_that_expires_before_the_lease_ends_is_reported(reconciler, lease_request, messages):
    site = FakeSite(limits=Credential(expires_at=NOW + 2 * HOUR))
    lease(site, reconciler, lease_request())
    assert any("the credential ends 2026-11-21 14:00 UTC" in line and "log in again" in line for line in messages)


@pytest.mark.parametrize(
    ("hours", "start", "fits"),
    [(3, None, True), (2, None, False), (4, NOW + 2 * HOUR, False), (5, NOW + 2 * HOUR, True)],
)
def test_an_unattended_lease_needs_a_credential_that_is_valid_until_its_release(reconciler, hours, start, fits):
    site = FakeSite(limits=Credential(expires_at=NOW + timedelta(hours=hours)))
    wanted = Requirements(3 * HOUR, start=start)
    if fits:
        require_lasting_credential(site, reconciler, wanted)
        return
    with pytest.raises(NoCredentials, match="log in again, or request a shorter lease"):
        require_lasting_credential(site, reconciler, wanted)
