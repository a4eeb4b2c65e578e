"""The commands as users type them, at the OpenStack testbed: plans, JSON, exit codes, bad input, doctor, secrets."""

import json
import os
import re
import signal
from datetime import UTC, datetime, timedelta

import pytest

from experiments.cli import app
from experiments.cli import lease as machines_cli
from experiments.system.signals import STOP_SIGNALS
from provision.leasing import boot
from provision.sites.base import connect_to
from tests.testbed.chameleon.conftest import REGIONS, FakeClock, left_at


@pytest.fixture
def lease_flags(key):
    return ["--node-type", "gpu_a100_pcie", "--start", "now", "--key", str(key.file), "--yes"]


def test_a_lease_is_created_and_released_from_the_command_line(testbed, site, lease_flags, sshd):
    code, out, _ = testbed("lease", *lease_flags, "--json")
    assert code == 0
    leased_data = json.loads(out)
    assert leased_data["lease"]["name"] == "llm_cc"
    assert leased_data["machines"][0]["server"] == "node-llm-cc"
    code, out, _ = testbed("status", "--json")
    assert json.loads(out)[0]["lease"]["status"] == "ACTIVE"
    assert json.loads(out)[0]["used_su"] >= 0
    assert testbed("extend", "--by", "1h", "--yes")[0] == 0
    assert testbed("release", "--yes")[0] == 0
    assert left_at(site) == []
    assert testbed("status")[1] == "no active lease\n"


def test_the_commands_extend_and_release_print_plans_and_results_as_json(testbed, site, lease_flags):
    start = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=2)
    assert testbed("lease", *lease_flags, "--start", start.isoformat(), "--no-wait")[0] == 0
    (held,) = site.leases()
    until = [f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (held.end, held.end + timedelta(hours=1))]
    code, out, _ = testbed("extend", "--dry-run", "--json")
    assert code == 0
    (would,) = json.loads(out)["would"]
    assert would.startswith(f"blazar: extend lease llm_cc at CHI@UC from {until[0]}")
    assert f" to {until[1]}" in would
    code, _, err = testbed("extend", "--by", "8d", "--dry-run")
    assert (code, err) == (2, "testbed: extension by 192h is not possible; allowed: more than 0m, at most 168h\n")
    assert testbed("extend")[0] == 2
    assert site.leases() == [held]
    code, out, _ = testbed("extend", "--yes", "--json")
    assert (code, datetime.fromisoformat(json.loads(out)["end"])) == (0, held.end + timedelta(hours=1))
    code, out, _ = testbed("release", "--dry-run", "--json")
    assert (code, json.loads(out)) == (0, {"would": [f"delete lease {held.id} at CHI@UC"]})
    assert testbed("release")[0] == 2
    assert len(site.leases()) == 1
    code, out, _ = testbed("release", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"released": [f"lease {held.id}"]})
    assert left_at(site) == []
    assert testbed("release", "--yes")[::2] == (2, "testbed: no active lease; create one with `testbed lease`\n")


def test_an_extension_against_the_rules_is_rejected_before_the_request(testbed, site, lease_flags):
    start = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=60)
    assert testbed("lease", *lease_flags, "--start", start.isoformat(), "--no-wait")[0] == 0
    opens = start + timedelta(hours=3 - 48)
    for flag in ("--dry-run", "--yes"):
        code, _, err = testbed("extend", flag)
        assert code == machines_cli.EXIT_FAILED
        assert f"lease llm_cc cannot be extended before {opens:%Y-%m-%d %H:%M} UTC" in err
    assert [lease.end for lease in site.leases()] == [start + timedelta(hours=3)]
    assert "start" in testbed("status")[1]


def test_the_lease_of_a_command_is_released_when_the_command_has_ended(
    testbed, site, lease_flags, monkeypatch, tmp_path
):
    monkeypatch.setattr(boot, "try_login", lambda login: None)
    code, _, _ = testbed("lease", *lease_flags, "--run", f"echo $TESTBED_NODES > {tmp_path}/nodes; false")
    assert code == machines_cli.EXIT_FAILED
    assert (tmp_path / "nodes").read_text().startswith("127.")
    assert left_at(site) == []


def test_the_option_keep_leaves_the_lease_after_its_command_has_ended(testbed, site, lease_flags, reachable):
    assert testbed("lease", *lease_flags, "--run", "false", "--keep")[0] == machines_cli.EXIT_FAILED
    assert [held.status for held in site.leases()] == ["ACTIVE"]
    assert len(site.servers()) == 1


def test_a_lease_is_released_if_its_command_gets_sigterm_while_a_node_boots(
    testbed, site, local_openstack, lease_flags, monkeypatch
):
    sent_signals: list[signal.Signals] = []

    class TerminatingClock(FakeClock):
        def sleep(self, seconds):
            if site.servers() and not sent_signals:
                sent_signals.append(signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            super().sleep(seconds)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.setattr("provision.clock.Clock", TerminatingClock)
    local_openstack.set_boot_behavior(P3_GPU_001={"seconds": 3})
    code, _, err = testbed("lease", *lease_flags, "--run", "true")
    for number, handler in before.items():
        signal.signal(number, handler)
    assert code == app.EXIT_INTERRUPTED
    assert "received SIGTERM; releasing lease llm_cc" in err
    assert err.splitlines()[-1] == "llm_cc is released; nothing is left at CHI@UC"
    assert left_at(site) == []


@pytest.mark.parametrize(("part", "node"), [("single", "gigaio-compute-02"), ("multi", "P3-GPU-001")])
def test_the_lease_for_the_labs_of_one_group_has_the_name_length_and_node_of_this_group(part, node, testbed, site, key):
    flags = ("--for", part, "--start", "2030-01-01T10:00Z", "--no-wait", "--key", str(key.file), "--yes")
    assert testbed("lease", *flags)[0] == 0
    (held,) = site.leases()
    hosts = {host.id: host.name for host in site.hosts()}
    assert (held.name, held.end - held.start) == (f"llm_{part}_cc", timedelta(hours=2))
    assert [hosts[id] for id in held.hosts] == [node]


def test_a_dry_run_lists_its_requests_and_sends_none(testbed, site, lease_flags):
    code, out, _ = testbed("lease", *lease_flags, "--dry-run")
    assert code == 0
    *calls, time = [line.partition(":")[0] for line in out.splitlines()]
    assert calls == ["blazar", "nova", "nova", "neutron", "ssh"]
    assert time.startswith("time on ")
    assert left_at(site) == []
    assert testbed("status")[1] == "no active lease\n"


def test_the_command_slots_shows_cost_and_time_zone(testbed):
    code, out, _ = testbed("slots", "--gpu", "A100", "--gpu-memory", "80", "--gpus", "4", "--json")
    assert code == 0
    assert json.loads(out)[0]["cost_su"] == 3 * 16
    code, out, _ = testbed("slots", "--node-type", "gpu_v100", "--zone", "Asia/Tokyo", "--calendar", "2")
    assert code == 0
    assert all(word in out for word in ("UTC", "Tokyo", "P2-GPU-001"))


def test_the_earliest_slot_is_found_over_all_sites_with_an_account(
    testbed, connected, local_openstack, key, monkeypatch, tmp_path
):
    site = connected("chameleon")
    clouds = {name: _account(local_openstack.environment(region)) for name, region in REGIONS.items()}
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": clouds}))
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    for gpu, region in (("A100", REGIONS["chameleon"]), ("H100", REGIONS["kvm"])):
        code, out, _ = testbed("slots", "--site", "any", "--gpu", gpu, "--gpus", "4", "--json", "--limit", "9")
        assert code == 0
        assert {slot["hosts"][0]["site"] for slot in json.loads(out)} == {region}
    flags = ("--site", "any", "--key", str(key.file), "--start", "2030-01-01T10:00Z", "--no-wait", "--yes")
    code, _, err = testbed("lease", *flags, "--node-type", "g1.h100.pc.1", "--watch")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "unknown node type 'g1.h100.pc.1'; similar names: g1.h100.pci.1" in err
    assert testbed("lease", *flags, "--node-type", "g1.h100.pci.1")[0] == 0
    assert [lease.name for lease in connect_to("kvm").leases()] == ["llm_cc"]
    assert site.leases() == []
    assert testbed("release", "--yes")[0] == 0


def _account(variables):
    """Return an account in clouds.yaml's format, from the variables of an RC file."""
    names = {name.removeprefix("OS_").lower(): value for name, value in variables.items() if name.startswith("OS_")}
    top = ("region_name", "interface", "auth_type")
    return {**{name: names.pop(name) for name in top}, "auth": names}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--node-type", "gpu_a100_pci"], "similar names: gpu_a100_pcie"),
        (["--hours", "0"], "length 0m"),
        (["--hours", "200"], "at most 168h"),
        (["--start", "2020-01-01T10:00Z"], "in the past"),
        (["--start", "2030-01-01T10:00"], "has no time zone"),
        (["--key", "/nowhere/id"], "SSH key /nowhere/id does not exist"),
        (["--name", "llm netid;"], "--name 'llm netid;'"),
        (["--site", "moon"], "unknown site 'moon'"),
        (["--zone", "Europe/Helsinky"], "similar names: Europe/Helsinki"),
    ],
)
def test_a_user_error_is_reported_in_one_line_with_exit_code_2_and_reserves_nothing(
    testbed, site, lease_flags, flags, line
):
    code, out, err = testbed("lease", *lease_flags, *flags)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1
    assert left_at(site) == []


def test_nothing_is_done_without_a_terminal_unless_the_option_yes_is_given(testbed, site, lease_flags):
    code, _, err = testbed("lease", *[flag for flag in lease_flags if flag != "--yes"])
    assert code == 2
    assert "lease llm_cc: without a terminal for the confirmation, --yes is required" in err
    assert left_at(site) == []


def test_the_checks_of_doctor_pass_for_a_valid_account_and_failed_ones_name_a_fix(testbed, key, monkeypatch):
    code, out, _ = testbed("doctor", "--site", "chameleon", "--key", str(key.file), "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert (code, [name for name, check in checks.items() if check["status"] != "ok"]) == (0, [])
    assert checks["account"]["text"] == "cc in project CHI-000001 at CHI@UC"
    monkeypatch.setenv("OS_PASSWORD", "wrong-secret")
    code, out, _ = testbed("doctor", "--site", "chameleon", "--key", "/nowhere/id")
    assert code == 1
    assert "create one: ssh-keygen" in out
    assert "keystone rejects them" in out
    assert "wrong-secret" not in out


def test_without_an_account_the_command_doctor_says_how_to_set_one(testbed, monkeypatch):
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    code, out, _ = testbed("doctor", "--site", "chameleon")
    assert code == 1
    assert "source the site's RC file to set OS_* variables, or write a clouds.yaml" in out


def test_an_application_credential_of_clouds_yaml_can_be_used_to_lease(
    testbed, site, local_openstack, key, monkeypatch, tmp_path
):
    credential = site.sdk.identity.create_application_credential(
        site.session.get_user_id(), name=tmp_path.name, unrestricted=True
    )
    clouds = {
        "clouds": {
            "uc": {
                "region_name": "CHI@UC",
                "auth_type": "v3applicationcredential",
                "auth": {
                    "auth_url": os.environ["OS_AUTH_URL"],
                    "application_credential_id": credential.id,
                    "application_credential_secret": credential.secret,
                },
            }
        }
    }
    (tmp_path / "clouds.yaml").write_text(json.dumps(clouds))
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    assert testbed("lease", "--start", "2030-01-01T10:00Z", "--no-wait", "--key", str(key.file), "--yes")[0] == 0
    assert [lease.name for lease in site.leases()] == ["llm_cc"]


def test_no_credential_token_or_key_is_in_anything_that_a_run_writes(
    testbed, site, lease_flags, key, local_openstack, sshd, tmp_path, caplog, monkeypatch
):
    caplog.set_level("DEBUG")
    keystone = local_openstack.proxies["keystone"]
    doctor = ("doctor", "--site", "chameleon", "--key", str(key.file))
    keystone.recorded_traffic = bytearray()
    messages = [testbed("lease", *lease_flags), testbed("status", "--json"), testbed("release", "--yes")]
    messages += [
        testbed("lease", *lease_flags, "--node-type", "none"),
        testbed(*doctor),
    ]
    monkeypatch.setenv("OS_PASSWORD", "wrong-secret")
    messages += [
        testbed("lease", *lease_flags),
        testbed(*doctor),
        testbed("orphans"),
    ]
    assert [code for code, _, _ in messages] == [0, 0, 0, 2, 0, 2, 1, 2]
    tokens = re.findall(r"(?i)x-subject-token: (\S+)", keystone.recorded_traffic.decode(errors="replace"))
    assert len(tokens) >= 5, "each command has a token of its own"
    files = {file: file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()}
    assert "create server" in files[tmp_path / "state" / "ledger.jsonl"]
    logged = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    written = {"said": str(messages), "logged": logged, **files}
    secrets = [*local_openstack.passwords.values(), "wrong-secret", *tokens, *key.file.read_text().splitlines()[1:-1]]
    assert [where for where, text in written.items() if any(secret in text for secret in secrets)] == []
