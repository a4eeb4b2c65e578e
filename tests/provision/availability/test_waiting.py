"""The progress that is reported while the program waits for a resource."""

from datetime import timedelta
from types import SimpleNamespace

from provision.availability.times import start_in_words
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Reconciler
from tests.support.leasing.fake_site import HOUR, NOW, FakeClock


def reported_lines(tmp_path, statuses, limit_s, remaining=None):
    """Wait for ACTIVE with a fake clock, one status each minute; return the reported lines."""
    said: list[str] = []
    left = [SimpleNamespace(status=status, start=NOW + 3 * HOUR) for status in statuses]
    reconciler = Reconciler(Journal(tmp_path), FakeClock(), said.append)
    reconciler.wait(
        "it",
        lambda: left.pop(0),
        lambda answer: answer.status == "ACTIVE",
        limit_s,
        every_s=60,
        remaining=remaining and (lambda answer: remaining(answer, reconciler.clock.now())),
    )
    return said


def test_a_new_status_is_reported_at_once_and_an_unchanged_one_after_each_eighth_of_the_limit(tmp_path):
    said = reported_lines(tmp_path, ["QUEUED", "BUILD", *["BUILD"] * 38, "ACTIVE"], 40 * 60)
    assert said[:3] == [
        "it: QUEUED, for 0 of up to 40 minutes",
        "it: BUILD, for 1 of up to 40 minutes",
        "it: BUILD, for 6 of up to 40 minutes",
    ]
    assert len(said) == 9


def test_a_lease_that_begins_later_is_reported_with_the_time_until_then(tmp_path):
    def remaining(lease, now):
        return start_in_words(lease.start, now)

    said = reported_lines(tmp_path, [*["PENDING"] * 60, "ACTIVE"], 4 * 60 * 60, remaining=remaining)
    assert said == ["it: PENDING, starts in 3h", "it: PENDING, starts in 2h30m"]
    assert start_in_words(NOW, NOW + timedelta(seconds=1)) == "is about to start"
