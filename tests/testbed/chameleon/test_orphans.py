"""Orphans: one's own are told and cleaned, those of another computer only by name, those of a classmate never."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from provision.leasing import release
from provision.leasing.lease import lease
from provision.leasing.ledger import Ledger
from provision.leasing.orphans import orphans
from provision.leasing.reconciler import Desk
from tests.testbed.chameleon.conftest import FakeClock, left_at


@pytest.fixture
def later():
    return datetime.now(UTC) + timedelta(hours=24)


def elsewhere(tmp_path):
    return Desk(Ledger(tmp_path / "elsewhere"), FakeClock(), lambda line: None)


def test_orphans_are_what_a_closed_page_left(testbed, site, desk, order, later):
    lease(site, desk, order(start=later), wait=False)
    assert orphans(site, desk) == []
    holding = release.held(desk, "llm_cc")
    desk.ledger.write("closed", holding)
    (there,) = (f"lease {one.id}" for one in site.leases())
    told = {holding.mark: {"there": [there], "opened_here": True}}
    code, out, _ = testbed("orphans", "--json")
    assert (code, json.loads(out)) == (0, {"orphans": told, "deleted": []})
    code, out, _ = testbed("orphans", "--clean", "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, {"orphans": told, "would delete": [holding.mark]})
    code, _, err = testbed("orphans", "--clean")
    assert (code, "needs --yes" in err) == (2, True)
    assert len(site.leases()) == 1
    code, out, _ = testbed("orphans", "--clean", "--yes", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, [holding.mark])
    assert left_at(site) == []
    assert testbed("orphans")[:2] == (0, "no orphans\n")


def test_what_another_computer_of_ones_own_holds_is_told_so_and_deleted_only_by_name(
    testbed, site, order, later, tmp_path
):
    lease(site, elsewhere(tmp_path), order(start=later), wait=False)
    (held,) = site.leases()
    code, out, _ = testbed("orphans", "--clean", "--yes")
    assert code == 0
    assert f"{held.mark}: lease {held.id} (of another ledger of yours" in out
    assert "nothing was deleted; --clean" in out
    assert site.leases() == [held]
    code, _, err = testbed("orphans", "--clean", "--yes", "llm-testbed-0")
    assert (code, err) == (2, f"testbed: MARK 'llm-testbed-0': no orphan of yours; allowed: {held.mark}\n")
    assert testbed("orphans", held.mark)[::2] == (2, f"testbed: MARK {held.mark!r}: allowed with --clean only\n")
    assert testbed("orphans", "--clean", "--yes", held.mark)[:2] == (
        0,
        f"{held.mark}: lease {held.id} (of another ledger of yours, as another computer's; deleted only by its name)\n"
        f"deleted: {held.mark}\n",
    )
    assert left_at(site) == []


MARK = "llm-testbed-000000000000"


def test_a_classmates_things_are_never_orphans(testbed, connected, order, reachable, tmp_path):
    theirs, mine = connected("chameleon", "classmate"), connected("chameleon")
    lease(theirs, elsewhere(tmp_path), order())
    theirs.allocate_address(MARK)
    before = [one.id for one in left_at(mine)]
    assert len(before) == 4
    assert testbed("orphans", "--clean", "--yes")[:2] == (0, "no orphans\n")
    assert [one.id for one in left_at(mine)] == before


def test_security_groups_tell_whose_they_are(testbed, connected):
    theirs, mine = connected("kvm", "classmate"), connected("kvm")
    openings = [site.open_ssh(mark) for site, mark in ((theirs, MARK), (mine, MARK.replace("0", "1")))]
    assert set(mine.openings()) == set(openings)
    code, out, _ = testbed("orphans", "--site", "kvm", "--json")
    assert (code, list(json.loads(out)["orphans"])) == (0, [openings[1].mark])
