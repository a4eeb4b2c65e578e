"""`testbed slots`, `lease` and related commands as users type them. Fakes: the site."""

import json
import os
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from experiments.cli.app import main
from provision.leasing import account
from provision.models import Credential
from provision.sites import base
from tests.support.leasing.fake_site import HOUR, IDENTITY, FakeSite, hosts_of
from tests.support.services.sshd import new_key


@dataclass
class UsersSite(FakeSite):
    def user(self):
        return "c@c"

    def user_id(self):
        return "1"


@pytest.fixture
def site():
    """Return a site of two nodes."""
    return UsersSite(hosts_of(2, gpu_model="NVIDIA A100 80GB PCIe", gpu_memory_gib=80.0))


@pytest.fixture
def testbed(monkeypatch, tmp_path, capsys, site):
    """Runs a command line at the site; exit code, standard output and standard error."""
    monkeypatch.setattr(base, "connect_to", lambda *_: site)
    monkeypatch.setattr(account, "connect_to", lambda *_: site)
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "journal"))
    monkeypatch.setenv("TZ", "UTC")
    new_key(tmp_path / "key")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([one.replace("KEY", str(tmp_path / "key")) for one in arguments])
        return code, *capsys.readouterr()

    return run


def test_slots_are_as_long_and_large_as_the_labs_need(testbed):
    code, out, err = testbed("slots", "--limit", "1", "--json")
    assert (code, err) == (0, "")
    (slot,) = json.loads(out)
    begin, end = (datetime.fromisoformat(slot[name]) for name in ("start", "end"))
    assert (end - begin).total_seconds() == 3 * 3600
    assert begin >= datetime.now(UTC).replace(second=0, microsecond=0)


def test_the_calendar_is_in_the_zone_that_is_named(testbed):
    code, out, _ = testbed("slots", "--zone", "Asia/Tokyo", "--calendar", "2")
    assert code == 0
    assert "Tokyo" in out


@pytest.mark.parametrize(("flags", "name"), [((), "llm_c"), (("--for", "single"), "llm_single_c")])
def test_the_plan_of_a_lease_has_its_name(testbed, flags, name):
    code, out, _ = testbed("lease", *flags, "--key", "KEY", "--dry-run", "--json")
    assert code == 0
    assert name in json.loads(out)["would"][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lease", "--run", "true", "--no-wait"], "--run: not with --no-wait, which leaves the nodes unbooted"),
        (["lease", "--key", "KEY", "--name", "a b"], "--name 'a b': allowed: letters, digits, _ . -, at most 55"),
        (["lease", "--key", "KEY"], "needs --yes without a terminal for the confirmation"),
        (["lease", "--key", "nowhere"], "nowhere"),
        (["slots", "--hours", "soon"], "soon"),
        (["slots", "--gpu", "H100"], "H100"),
        (["doctor", "--image", "mine"], "--image: allowed with --site of a testbed only"),
        (["status", "nope"], "nope"),
        (["extend", "--yes"], "no active lease; create one with `testbed lease`"),
        (["release", "--yes"], "no active lease; create one with `testbed lease`"),
        (["configure"], "no active lease; create one with `testbed lease`"),
        (["configure", "--archive", "a"], "--archive: allowed and required only with --image-source load"),
        (["orphans", "llm-testbed-0"], "TAG 'llm-testbed-0': allowed with --clean only"),
    ],
)
def test_a_mistake_is_one_line(testbed, arguments, says):
    code, out, err = testbed(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("testbed: ")
    assert err.count("\n") == 1


def test_a_lease_of_another_account_is_named_and_kept(testbed, site):
    assert testbed("lease", "--key", "KEY", "--start", "now", "--no-wait", "--yes")[0] == 0
    site.account = replace(IDENTITY, project="CHI-000002", project_id="p2")
    lines = [testbed(*arguments) for arguments in (("status",), ("release", "--yes"), ("release", "--dry-run"))]
    assert {code for code, _, _ in lines} == {2}
    assert all("but the current account is cc in project CHI-0" in err for *_, err in lines)
    assert len(site.held) == 1


def test_status_shows_other_leases_where_one_cannot_be_asked(testbed, site):
    for name in ("llm_a", "llm_b"):
        assert testbed("lease", "--name", name, "--key", "KEY", "--start", "now", "--no-wait", "--yes")[0] == 0
        site.account = replace(IDENTITY, project="CHI-000002", project_id="p2")
    code, out, err = testbed("status", "--json")
    assert (code, [one["active_lease"]["name"] for one in json.loads(out)]) == (3, ["llm_b"])
    assert "lease llm_a was made by" in err


def test_an_unattended_lease_needs_a_credential_until_its_end(testbed, site):
    site.limits = Credential(ends=datetime.now(UTC) + HOUR)
    code, _, err = testbed("lease", "--key", "KEY", "--start", "now", "--run", "true", "--yes")
    assert (code, "log in again, or make a shorter lease" in err, site.held) == (2, True, [])


def test_the_account_is_named_by_an_option_of_every_command(testbed, monkeypatch):
    monkeypatch.setenv("OS_CLOUD", "uc_course")
    assert testbed("--cloud", "uc_research", "status")[0] == 0
    assert os.environ["OS_CLOUD"] == "uc_research"


def test_without_leases_there_is_nothing_to_show(testbed):
    assert testbed("status") == (0, "no active lease\n", "")
    assert json.loads(testbed("status", "--json")[1]) == []
    assert testbed("orphans") == (0, "no leaked resources\n", "")


def test_what_reproduce_would_do_is_printed(testbed, tmp_path):
    flags = ["--for", "single", "--key", "KEY", "--row", "reduced-batch", "--results", str(tmp_path), "--dry-run"]
    code, out, _ = testbed("reproduce", *flags, "--weights", "pretrained", "--gpus-per-node", "1")
    assert code == 0
    lines = out.splitlines()
    assert "slurm on llm_single_c: run 1 row(s) of single_gpu_blip2, download the results" in lines
    assert lines[-1] == "release llm_single_c: servers, volumes, addresses, key and lease"
    code, _, err = testbed("reproduce", *flags, "--max-hours", "1")
    assert (code, err) == (2, "testbed: --max-hours 1h: the lease would be 2h long\n")


@pytest.mark.parametrize(
    ("arguments", "module", "package"),
    [
        (["configure"], None, "ansible_runner"),
        (["reproduce", "--key", "KEY"], None, "ansible_runner"),
        (["lease", "--site", "any", "--key", "KEY"], "provision.sites.accounts", "openstack"),
    ],
)
def test_without_the_packages_of_a_testbed_it_says_what_to_install(testbed, monkeypatch, arguments, module, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    code, out, err = testbed(*arguments)
    expected = f"testbed: package '{package}' is not installed; pip install 'llm-testbed[chameleon]'\n"
    assert (code, out, err) == (2, "", expected)


def test_a_lease_that_ends_soon_is_notified(testbed, monkeypatch):
    sent = []
    monkeypatch.setattr("experiments.notify.send._try_to_send", lambda service, title, text: sent.append(title) or True)
    assert testbed("lease", "--key", "KEY", "--start", "now", "--no-wait", "--yes", "--hours", "2")[0] == 0
    assert testbed("status", "--notify", "json://localhost/hook")[0] == 0
    assert "testbed: lease llm_c ends" not in [title.split(" in ")[0] for title in sent]
    assert testbed("status", "--notify", "json://localhost/hook", "--within", "3h")[0] == 0
    assert "testbed: lease llm_c ends" in [title.split(" in ")[0] for title in sent]
