"""Messages about leases during a check before a semester. Fakes: the site, the clock, the environments of the check."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from experiments.cli.app import main
from experiments.cli.semester import notices
from experiments.cli.semester.notices import LeaseWatch
from experiments.notify.send import Notifier
from experiments.semester import check
from experiments.semester.process import POLL_S, run_logged
from provision.errors import RequestRejected, Unreachable
from provision.leasing import account
from provision.leasing.journal import Journal, Operation
from provision.leasing.request import EndWhenIdle, end_when_idle_data, lease_data
from provision.models import Lease
from tests.support import fake_environment
from tests.support.leasing.fake_site import FakeSite, hosts_of

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC).replace(microsecond=0)


class FakeDatetime(datetime):
    """A datetime whose ``now`` is the value of ``at``."""

    at = NOW

    @classmethod
    def now(cls, tz=None):
        return cls.at


@pytest.fixture
def site(monkeypatch):
    """A fake site with one lease of sixteen service units an hour, and the journal that has it."""
    site = FakeSite(hosts_of(1, su_per_hour=16.0))
    monkeypatch.setattr(account, "connect_to", lambda name, entry="": site)
    return site


@pytest.fixture
def lease_watch(site, monkeypatch, tmp_path, webhook):
    """A watch with a bound of 20 service units, its clock, and what the webhook received."""
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "state"))
    monkeypatch.setattr(notices, "datetime", FakeDatetime)
    monkeypatch.setattr("provision.clock.datetime", FakeDatetime)
    monkeypatch.setattr("experiments.cli.semester.notices.time.monotonic", lambda: FakeDatetime.at.timestamp())
    FakeDatetime.at = NOW
    url, received = webhook
    watch = LeaseWatch(partial(notices.send, Notifier([url])), 20.0)

    def watch_after(after: timedelta = timedelta()) -> list[str]:
        """Watch the lease once, ``after`` that time has passed; return the titles of the new messages."""
        FakeDatetime.at += after
        before = len(received)
        watch()
        return [one["title"] for one in received[before:]]

    return watch_after


def add_lease(site, begins=2 * HOUR, ends=5 * HOUR, name="llm_cc"):
    journal = Journal()
    opened = journal.open_lease(name, site.name, site.account)
    number = len(site.held) + 1
    lease = Lease(f"lease-{number}", name, "ACTIVE", NOW + begins, NOW + ends, ("r",), ("1",), opened.tag)
    site.held.append(lease)
    journal.write("done", opened, Operation.CREATE_LEASE, **lease_data(lease))
    return opened


def test_messages_are_sent_when_a_lease_begins_or_ends_soon_or_costs_too_much(site, lease_watch):
    add_lease(site)
    assert lease_watch() == []
    assert lease_watch(HOUR - timedelta(seconds=1)) == []
    assert lease_watch(timedelta(seconds=1)) == ["testbed: lease llm_cc begins in 1h"]
    assert lease_watch(timedelta(seconds=5)) == []
    assert lease_watch(HOUR + timedelta(hours=1, minutes=14, seconds=55)) == []
    assert lease_watch(timedelta(seconds=10)) == ["testbed: lease llm_cc has cost 20.0 service units, more than 20"]
    assert lease_watch(HOUR) == ["testbed: lease llm_cc ends in 44m"]
    assert lease_watch(HOUR) == []


def test_the_first_check_sends_messages_and_checks_are_at_most_ten_seconds_apart(site, lease_watch):
    add_lease(site, begins=HOUR + timedelta(seconds=7))
    asked = []
    leases = site.leases
    site.leases = lambda: asked.append(1) or leases()
    assert [lease_watch(timedelta(seconds=POLL_S)) for _ in range(3)] == [
        [],
        ["testbed: lease llm_cc begins in 59m"],
        [],
    ]
    assert POLL_S <= 10
    assert len(asked) == 1, "the time alone decides, and the site is not queried"


def test_a_new_lease_is_reported_at_once_even_if_an_earlier_lease_had_its_name(site, lease_watch):
    assert lease_watch() == []
    first = add_lease(site, begins=-2 * HOUR)
    assert lease_watch(timedelta(seconds=5)) == ["testbed: lease llm_cc has cost 32.0 service units, more than 20"]
    Journal().write("closed", first)
    site.held.clear()
    add_lease(site, begins=-2 * HOUR)
    assert lease_watch(timedelta(seconds=5)) == ["testbed: lease llm_cc has cost 32.0 service units, more than 20"]


def test_an_extended_lease_is_reported_again_before_its_new_end(site, lease_watch):
    add_lease(site, begins=-HOUR / 60, ends=HOUR / 2)
    assert lease_watch() == ["testbed: lease llm_cc ends in 30m"]
    site.held = [replace(one, end=one.end + HOUR) for one in site.held]
    assert lease_watch(timedelta(minutes=5)) == []
    assert lease_watch(timedelta(minutes=26)) == ["testbed: lease llm_cc ends in 59m"]


def test_a_lease_that_ended_itself_is_reported_once(site, lease_watch):
    opened = add_lease(site, begins=-HOUR / 60)
    Journal().write("done", opened, Operation.CREATE_CREDENTIAL, id="c", **end_when_idle_data(EndWhenIdle(HOUR / 2)))
    assert lease_watch() == []
    site.held.clear()
    assert lease_watch(timedelta(minutes=5)) == ["testbed: lease llm_cc ended itself or was deleted"]
    assert lease_watch(timedelta(minutes=5)) == []


@pytest.mark.parametrize("problem", [Unreachable("blazar does not answer"), RequestRejected("no")])
def test_a_site_that_does_not_answer_is_queried_again_and_its_lease_is_still_reported(
    site, lease_watch, problem, monkeypatch
):
    add_lease(site)
    assert lease_watch() == []
    asked = []

    def fail_to_list_leases():
        asked.append(1)
        raise problem

    leases = site.leases
    site.leases = fail_to_list_leases
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits"))
    assert lease_watch(HOUR) == ["testbed: lease llm_cc begins in 1h"]
    assert lease_watch(timedelta(minutes=6)) == []
    assert len(asked) == 2
    site.leases = leases
    assert lease_watch(timedelta(minutes=6)) == []


def test_leases_are_reported_again_once_a_damaged_journal_is_repaired(site, lease_watch):
    add_lease(site)
    ledger = Journal().folder / "ledger.jsonl"
    whole = ledger.read_text()
    ledger.write_text(whole.replace("llm_cc", "llm_xx", 1))
    assert lease_watch() == []
    ledger.write_text(whole)
    assert lease_watch(HOUR) == ["testbed: lease llm_cc begins in 1h"]


def test_a_semester_check_reports_end_and_cost_of_its_lease_and_continues(site, monkeypatch, tmp_path, webhook, capsys):
    """Runs `testbed semester --lease`. Fake: `testbed reproduce`, during which the lease is in the journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "state"))
    monkeypatch.setattr(check, "python_of", lambda *_: fake_environment.write_python(tmp_path, "2.13.0"))
    monkeypatch.setattr(check, "run_logged", partial(run_logged, poll_s=0.05))
    elapsed = datetime.now(UTC) - NOW
    add_lease(site, begins=elapsed - 2 * HOUR, ends=elapsed + HOUR / 2)
    url, received = webhook
    lease = ["--lease", "gpu_a100_pcie", "--max-hours", "3", "--above", "20"]
    code = main(["semester", fake_environment.SUITE, "--versions", "current", *lease, "--notify", url])
    out, _ = capsys.readouterr()
    assert (code, "current versions: lease" in out) == (0, True)
    titles = [one["title"] for one in received]
    assert [title for title in titles if title.startswith("testbed: lease llm_cc ends in")]
    assert [title for title in titles if title.startswith("testbed: lease llm_cc has cost 32")]
    assert titles[-1].startswith("testbed: semester check finished")
    assert len(titles) == 3
    called = (tmp_path / "results/semester/CALLS.txt").read_text().split()
    assert called[-1] == "current-lease"
