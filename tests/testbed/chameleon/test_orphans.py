"""Leaked resources: the user's own are deleted, those of another computer only by tag, a classmate's never."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from provision.leasing import release
from provision.leasing.journal import Journal
from provision.leasing.leaked import leaked_resources
from provision.leasing.lease import lease
from provision.leasing.reconciler import Reconciler
from tests.testbed.chameleon.conftest import FakeClock, left_at


@pytest.fixture
def start_tomorrow():
    return datetime.now(UTC) + timedelta(hours=24)


def reconciler_of_other_computer(tmp_path):
    return Reconciler(Journal(tmp_path / "elsewhere"), FakeClock(), lambda line: None)


def test_resources_of_a_closed_lease_are_listed_as_leaked(testbed, site, reconciler, lease_request, start_tomorrow):
    lease(site, reconciler, lease_request(start=start_tomorrow), wait=False)
    assert leaked_resources(site, reconciler) == []
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    reconciler.journal.write("closed", active_lease)
    (lease_name,) = (f"lease {one.id}" for one in site.leases())
    orphans = {active_lease.tag: {"resources": [lease_name], "in_journal": True}}
    code, out, _ = testbed("orphans", "--json")
    assert (code, json.loads(out)) == (0, {"orphans": orphans, "deleted": []})
    code, out, _ = testbed("orphans", "--clean", "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, {"orphans": orphans, "would delete": [active_lease.tag]})
    code, _, err = testbed("orphans", "--clean")
    assert (code, "--yes is required" in err) == (2, True)
    assert len(site.leases()) == 1
    code, out, _ = testbed("orphans", "--clean", "--yes", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, [active_lease.tag])
    assert left_at(site) == []
    assert testbed("orphans")[:2] == (0, "no leaked resources\n")


def test_resources_of_the_users_other_computer_are_deleted_only_by_tag(
    testbed, site, lease_request, start_tomorrow, tmp_path
):
    lease(site, reconciler_of_other_computer(tmp_path), lease_request(start=start_tomorrow), wait=False)
    (held,) = site.leases()
    code, out, _ = testbed("orphans", "--clean", "--yes")
    assert code == 0
    assert f"{held.tag}: lease {held.id} (not created from this computer" in out
    assert "nothing was deleted; --clean" in out
    assert site.leases() == [held]
    code, _, err = testbed("orphans", "--clean", "--yes", "llm-testbed-0")
    assert (code, err) == (
        2,
        f"testbed: TAG 'llm-testbed-0': no leaked resource of yours has it; allowed: {held.tag}\n",
    )
    assert testbed("orphans", held.tag)[::2] == (2, f"testbed: TAG {held.tag!r}: allowed with --clean only\n")
    assert testbed("orphans", "--clean", "--yes", held.tag)[:2] == (
        0,
        f"{held.tag}: lease {held.id} (not created from this computer; deleted only with --clean and this tag)\n"
        f"deleted: {held.tag}\n",
    )
    assert left_at(site) == []


TAG = "llm-testbed-000000000000"


def test_a_classmates_resources_are_never_listed(testbed, connected, lease_request, reachable, tmp_path):
    theirs, mine = connected("chameleon", "classmate"), connected("chameleon")
    lease(theirs, reconciler_of_other_computer(tmp_path), lease_request())
    theirs.allocate_address(TAG)
    before = [one.id for one in left_at(mine)]
    assert len(before) == 4
    assert testbed("orphans", "--clean", "--yes")[:2] == (0, "no leaked resources\n")
    assert [one.id for one in left_at(mine)] == before


def test_only_security_groups_of_the_user_are_listed(testbed, connected):
    theirs, mine = connected("kvm", "classmate"), connected("kvm")
    groups = [site.create_security_group(tag) for site, tag in ((theirs, TAG), (mine, TAG.replace("0", "1")))]
    assert set(mine.security_groups()) == set(groups)
    code, out, _ = testbed("orphans", "--site", "kvm", "--json")
    assert (code, list(json.loads(out)["orphans"])) == (0, [groups[1].tag])
