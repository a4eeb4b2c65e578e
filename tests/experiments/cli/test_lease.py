"""`testbed slots`, `lease` and related commands as users type them. Fakes: the site."""

import json
import os
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from experiments import reproduce as reproduction
from experiments.cli.app import main
from provision.errors import NoCredentials
from provision.leasing import account
from provision.models import Booking, Credential
from provision.sites import base
from tests.support.leasing.fake_site import HOUR, IDENTITY, FakeSite, hosts_of
from tests.support.services.sshd import new_key


@dataclass
class UsersSite(FakeSite):
    booked: list[Booking] = field(default_factory=list)

    def user(self):
        return "c@c"

    def user_id(self):
        return "1"

    def bookings(self):
        return super().bookings() + self.booked


@pytest.fixture
def site():
    """Return a site of two nodes."""
    return UsersSite(hosts_of(2, gpu_model="NVIDIA A100 80GB PCIe", gpu_memory_gib=80.0))


@pytest.fixture
def testbed(monkeypatch, tmp_path, capsys, site):
    """Run a command line at the fake site; return exit code, standard output and standard error."""
    monkeypatch.setattr(base, "connect_to", lambda *_: site)
    monkeypatch.setattr(account, "connect_to", lambda *_: site)
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "journal"))
    monkeypatch.setenv("TZ", "UTC")
    new_key(tmp_path / "key")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([one.replace("KEY", str(tmp_path / "key")) for one in arguments])
        return code, *capsys.readouterr()

    return run


def test_slots_have_the_length_and_the_nodes_that_the_labs_need(testbed):
    code, out, err = testbed("slots", "--limit", "1", "--json")
    assert (code, err) == (0, "")
    (slot,) = json.loads(out)
    begin, end = (datetime.fromisoformat(slot[name]) for name in ("start", "end"))
    assert (end - begin).total_seconds() == 3 * 3600
    assert begin >= datetime.now(UTC).replace(second=0, microsecond=0)


def test_bookings_are_listed_with_exact_times(testbed, site):
    start = datetime.now(UTC).replace(minute=7, second=0, microsecond=0) + HOUR
    site.booked = [Booking("2", start, start + 2 * HOUR), Booking("1", start - 9 * HOUR, start - 8 * HOUR)]
    code, out, _ = testbed("slots", "--bookings", "--json")
    (booking,) = json.loads(out)
    assert (code, booking["host"]["name"]) == (0, "node-2")
    assert [booking[end] for end in ("start", "end")] == [
        f"{time:%Y-%m-%dT%H:%M:%S+00:00}" for time in (start, start + 2 * HOUR)
    ]
    code, out, _ = testbed("slots", "--bookings")
    assert (code, "node-2" in out, f"{start:%Y-%m-%d %H:%M} to" in out, "node-1" in out) == (0, True, True, False)


def test_the_command_lease_without_waiting_shows_start_end_and_node(testbed, site):
    site.lease_status = "PENDING"
    start = (datetime.now(UTC) + 24 * HOUR).replace(minute=0, second=0, microsecond=0)
    flags = ["--key", "KEY", "--no-wait", "--yes", "--start", f"{start:%Y-%m-%dT%H:%MZ}", "--hours", "2"]
    code, out, _ = testbed("lease", *flags)
    assert code == 0
    assert out.splitlines()[:4] == [
        "llm_c is PENDING",
        f"start: {start:%Y-%m-%d %H:%M} UTC",
        f"end: {start + 2 * HOUR:%Y-%m-%d %H:%M} UTC",
        "node: node-1 gpu at CHI@UC",
    ]
    _, out, _ = testbed("status")
    assert all(part in out for part in ("PENDING", f"{start:%Y-%m-%d %H:%M} UTC", "node-1 gpu at CHI@UC"))


@pytest.mark.parametrize(("model", "capability"), [("P100", "6.0"), ("V100", "7.0")])
def test_a_lease_of_a_gpu_without_bfloat16_causes_a_warning(testbed, site, model, capability):
    site.machines = hosts_of(2, gpu_model=model, gpu_memory_gib=16.0, node_type=f"gpu_{model.lower()}")
    for command in (["slots"], ["lease", "--key", "KEY", "--dry-run"]):
        _, _, err = testbed(*command, "--node-type", f"gpu_{model.lower()}")
        assert f"{model} 16GB: too old for the project's container image" in err
        assert f"{model} 16GB computes bfloat16 in software, which is slow (compute capability {capability}, " in err


def test_a_lease_of_a_gpu_with_bfloat16_causes_no_warning(testbed):
    assert "warning" not in testbed("lease", "--key", "KEY", "--dry-run")[2]


@pytest.fixture
def no_account(monkeypatch, testbed):
    def reject(*_):
        raise NoCredentials("credentials: no account")

    monkeypatch.setattr(base, "connect_to", reject)


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize("command", ["lease", "reproduce"])
def test_all_missing_requirements_of_a_lease_are_named_at_once(testbed, command):
    code, out, err = testbed(command, "--key", "nowhere", "--yes")
    assert (code, out) == (2, "")
    assert all(part in err for part in ("nowhere does not exist", "no account", "testbed doctor --site chameleon"))
    assert err.count("\n") == 1


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(("site_name", "volume"), [("chameleon", False), ("kvm", True)])
def test_without_an_account_the_plan_has_name_length_type_and_steps(testbed, site_name, volume):
    flags = ["--node-type", "gpu_a100_pcie", "--for", "single", "--key", "KEY"]
    code, out, err = testbed("lease", "--site", site_name, *flags, "--dry-run", "--json")
    steps = json.loads(out)["would"]
    named = "llm_single_USER of 1 node gpu_a100_pcie with at least 1 GPU, for 2h, start: as early as possible"
    assert (code, steps[0]) == (0, f"blazar: create lease {named}")
    assert [step.split(":")[0] for step in steps[-3:]] == ["nova", "neutron", "ssh"]
    assert any(step.startswith("cinder") for step in steps) == volume
    assert err.startswith("not ready: ")
    assert "no account" in err


def test_the_calendar_has_the_requested_time_zone(testbed):
    code, out, _ = testbed("slots", "--zone", "Asia/Tokyo", "--calendar", "2")
    assert code == 0
    assert "Tokyo" in out


@pytest.mark.parametrize(("flags", "name"), [((), "llm_c"), (("--for", "single"), "llm_single_c")])
def test_the_plan_of_a_lease_has_its_name(testbed, flags, name):
    code, out, _ = testbed("lease", *flags, "--key", "KEY", "--dry-run", "--json")
    assert code == 0
    assert name in json.loads(out)["would"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lease", "--run", "true", "--no-wait"], "--run: not allowed with --no-wait, which does not boot the nodes"),
        (
            ["lease", "--key", "KEY", "--name", "a b"],
            "--name 'a b': allowed: at most 55 letters, digits, _ . -, a letter or digit first",
        ),
        (["lease", "--key", "KEY"], "without a terminal for the confirmation, --yes is required"),
        (["lease", "--key", "nowhere"], "nowhere"),
        (["slots", "--hours", "soon"], "soon"),
        (["slots", "--gpu", "H100"], "H100"),
        (["doctor", "--image", "mine"], "--image: allowed only with a --site that boots nodes"),
        (["status", "nope"], "nope"),
        (["extend", "--yes"], "no active lease; create one with `testbed lease`"),
        (["release", "--yes"], "no active lease; create one with `testbed lease`"),
        (["configure"], "no active lease; create one with `testbed lease`"),
        (
            ["configure", "--image-archive", "a"],
            "--image-archive: allowed with --image-source load only, not with build",
        ),
        (["configure", "--image-source", "load"], "--image-source load: needs --image-archive"),
        (["orphans", "llm-testbed-0"], "TAG 'llm-testbed-0': allowed with --clean only"),
    ],
)
def test_an_error_is_reported_in_one_line(testbed, arguments, message):
    code, out, err = testbed(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("testbed: ")
    assert err.count("\n") == 1


def test_a_lease_of_another_account_is_named_and_not_released(testbed, site):
    assert testbed("lease", "--key", "KEY", "--start", "now", "--no-wait", "--yes")[0] == 0
    site.account = replace(IDENTITY, project="CHI-000002", project_id="p2")
    lines = [testbed(*arguments) for arguments in (("status",), ("release", "--yes"), ("release", "--dry-run"))]
    assert {code for code, _, _ in lines} == {2}
    assert all("but the current account is cc in project CHI-0" in err for *_, err in lines)
    assert len(site.held) == 1


def test_the_command_status_shows_the_leases_of_other_sites_if_one_does_not_answer(testbed, site):
    for name in ("llm_a", "llm_b"):
        assert testbed("lease", "--name", name, "--key", "KEY", "--start", "now", "--no-wait", "--yes")[0] == 0
        site.account = replace(IDENTITY, project="CHI-000002", project_id="p2")
    code, out, err = testbed("status", "--json")
    assert (code, [one["active_lease"]["name"] for one in json.loads(out)]) == (3, ["llm_b"])
    assert "lease llm_a was created by" in err


def test_an_unattended_lease_needs_a_credential_that_does_not_expire_before_its_end(testbed, site):
    site.limits = Credential(expires_at=datetime.now(UTC) + HOUR)
    code, _, err = testbed("lease", "--key", "KEY", "--start", "now", "--run", "true", "--yes")
    assert (code, "log in again, or request a shorter lease" in err, site.held) == (2, True, [])


def test_the_account_is_named_by_an_option_of_every_command(testbed, monkeypatch):
    monkeypatch.setenv("OS_CLOUD", "uc_course")
    assert testbed("--cloud", "uc_research", "status")[0] == 0
    assert os.environ["OS_CLOUD"] == "uc_research"


def test_the_commands_status_and_orphans_print_that_nothing_is_leased_if_there_is_no_lease(testbed):
    assert testbed("status") == (0, "no active lease\n", "")
    assert json.loads(testbed("status", "--json")[1]) == []
    assert testbed("orphans") == (0, "no leaked resources\n", "")


def test_the_plan_of_reproduce_is_printed(testbed, tmp_path):
    flags = ["--for", "single", "--key", "KEY", "--row", "reduced-batch", "--results", str(tmp_path), "--dry-run"]
    code, out, _ = testbed("reproduce", *flags, "--weights", "pretrained", "--gpus-per-node", "1")
    assert code == 0
    lines = out.splitlines()
    assert "slurm on llm_single_c: run 1 row of single_gpu_blip2, download the results" in lines
    assert "release llm_single_c: servers, volumes, addresses, key and lease" in lines
    assert lines[-1].startswith("length of the lease: 1h30m, ")
    code, _, err = testbed("reproduce", *flags, "--max-hours", "1")
    assert (code, err) == (
        2,
        "testbed: --max-hours 1h: the lease would be 1h30m long; shorten --hours or raise --max-hours\n",
    )


def test_the_command_reproduce_runs_rows_with_the_given_weights_data_input_and_gpus_per_node(
    testbed, tmp_path, monkeypatch
):
    planned = []
    original = reproduction.planned_operations
    monkeypatch.setattr(
        reproduction, "planned_operations", lambda *arguments: planned.append(arguments[0]) or original(*arguments)
    )
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "metadata.jsonl").write_text('{"file_name": "1.jpg", "text": "soup"}\n')
    given = {"weights": "pretrained", "data": str(tmp_path / "captions"), "input": "with-image", "gpus_per_node": 1}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    row = ["single_gpu_blip2", "--row", "reduced-batch", "--results", str(tmp_path / "results")]
    code, out, _ = testbed("reproduce", *row, "--key", "KEY", "--dry-run", *flags)
    assert (code, "run 1 row of single_gpu_blip2" in out) == (0, True)
    ((options,),) = [one.run_options for one in planned]
    assert {name: getattr(options, name) for name in given} == given


@pytest.mark.parametrize(
    ("arguments", "module", "package"),
    [
        (["configure"], None, "ansible_runner"),
        (["reproduce", "--key", "KEY"], None, "ansible_runner"),
        (["lease", "--site", "any", "--key", "KEY"], "provision.sites.accounts", "openstack"),
    ],
)
def test_without_the_optional_packages_the_message_names_what_to_install(
    testbed, monkeypatch, arguments, module, package
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    code, out, err = testbed(*arguments)
    expected = f"testbed: package '{package}' is not installed; pip install 'llm-testbed[chameleon]'\n"
    assert (code, out, err) == (2, "", expected)


def test_a_message_about_a_lease_that_ends_soon_is_sent(testbed, monkeypatch):
    sent = []
    monkeypatch.setattr("experiments.notify.send._try_to_send", lambda service, title, text: sent.append(title) or True)
    assert testbed("lease", "--key", "KEY", "--start", "now", "--no-wait", "--yes", "--hours", "2")[0] == 0
    assert testbed("status", "--notify", "json://localhost/hook")[0] == 0
    assert "testbed: lease llm_c ends" not in [title.split(" in ")[0] for title in sent]
    assert testbed("status", "--notify", "json://localhost/hook", "--within", "3h")[0] == 0
    assert "testbed: lease llm_c ends" in [title.split(" in ")[0] for title in sent]
