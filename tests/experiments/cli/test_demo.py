"""The commands at the site `demo`, which need no account, SSH key or node, and leave real leases unchanged."""

import inspect

import pytest

from experiments.cli.app import main
from provision.leasing.journal import Journal
from provision.sites import base, demo

BANNER = "demonstration: a simulated site; nothing is leased, booted or charged\n"


@pytest.fixture
def testbed(tmp_path, monkeypatch, capsys):
    """Run a command with an empty home; return its exit code, stdout and stderr."""
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    monkeypatch.setattr(demo, "LONGEST_WAIT_S", 0.0)

    def run(*arguments):
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_demonstration_has_every_method_of_a_site(tmp_path):
    site = demo.Demo(tmp_path)
    methods = [name for name, _ in inspect.getmembers(base.LeasingSite, inspect.isfunction) if not name.startswith("_")]
    assert len(methods) > 20
    assert [name for name in methods if not callable(getattr(site, name, None))] == []
    assert isinstance(site, base.SimulatedServers)


def test_a_simulated_lease_goes_from_the_calendar_to_its_release(testbed, tmp_path):
    code, out, err = testbed("slots", "--site", "demo", "--calendar", "2")
    assert (code, "DEMO@nowhere" in out, err) == (0, True, BANNER)
    code, out, err = testbed("lease", "--site", "demo", "--yes")
    assert (code, "llm_you is ACTIVE\n" in out, "cc@192.0.2.1" in out) == (0, True, True)
    assert all(line.startswith("demonstration: ") for line in err.splitlines())
    for command in (("status",), ("extend", "--yes"), ("release", "--yes")):
        code, out, err = testbed(*command)
        assert (code, "llm_you" in out, err.startswith(BANNER)) == (0, True, True)
    assert testbed("status") == (0, "no active lease\n", "")
    assert demo.Demo(tmp_path / "state" / "demo").leases() == []
    assert Journal(tmp_path / "state").entries() == []


def test_a_lease_that_starts_later_is_pending(testbed):
    code, out, _ = testbed("lease", "--site", "demo", "--no-wait", "--yes")
    assert (code, "llm_you is PENDING\n" in out) == (0, True)


def test_a_lease_stored_by_an_earlier_version_is_shown(testbed, tmp_path):
    testbed("lease", "--site", "demo", "--no-wait", "--yes")
    file = tmp_path / "state" / "demo" / "site.json"
    stored = file.read_text()
    file.write_text(stored.replace('"reservation_ids":', '"resources":'))
    assert file.read_text() != stored
    assert testbed("status")[0] == 0


def test_real_leases_are_shown_first_and_the_demonstration_has_its_own_journal(testbed, tmp_path):
    assert testbed("lease", "--site", "demo", "--no-wait", "--yes")[0] == 0
    Journal(tmp_path / "state").open_lease("llm_cc", "CHI@UC")
    err = testbed("status")[2]
    assert "credentials: no account" in err
    assert "demonstration" not in err
    assert BANNER in testbed("release", "llm_you", "--yes")[2]


def test_every_check_passes_and_the_command_reproduce_shows_its_plan(testbed):
    code, out, err = testbed("doctor", "--site", "demo")
    assert (code, out.splitlines()[-1], err) == (0, "none of 15 failed", BANNER)
    code, out, err = testbed("reproduce", "--site", "demo", "--dry-run")
    assert (code, err) == (0, BANNER)
    assert "slurm on llm_you: run 15 rows of single_gpu_blip2" in out
    times = [line for line in testbed("lease", "--site", "demo", "--dry-run")[1].splitlines() if "time on" in line]
    assert times == [line for line in out.splitlines() if "time on" in line]
    assert len(times) == 1


def test_the_command_status_with_the_option_since_adds_up_the_costs_of_past_leases(testbed):
    assert testbed("status", "--since", "2020-01-01") == (0, "0 leases: 0.0 service units\n", "")
    assert testbed("lease", "--site", "demo", "--yes")[0] == 0
    code, out, _ = testbed("status", "--since", "2020-01-01")
    assert (code, out.splitlines()[0].startswith("llm_you at DEMO@nowhere, 20")) == (0, True)
    assert out.splitlines()[1].startswith("1 lease: ")
    code, _, err = testbed("status", "--since", "autumn")
    assert (code, err.splitlines()[-1]) == (2, "testbed: --since autumn: allowed: a day such as 2026-09-01")
    assert testbed("status", "--since", "2999-01-01")[1] == "0 leases: 0.0 service units\n"
