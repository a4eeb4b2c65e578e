"""Requests are retried, recorded and never carried out twice; waits report each new status. The clock is a fake."""

from types import SimpleNamespace

import pytest

from provision.errors import RequestRejected, Unreachable
from provision.leasing.journal import Operation
from tests.support.leasing.fake_site import NOW

SILENT = Unreachable("blazar does not answer")


@pytest.fixture
def active_lease(reconciler):
    return reconciler.journal.open_lease("llm_cc", "CHI@UC")


@pytest.fixture
def passed_s(reconciler):
    return lambda: (reconciler.clock.now() - NOW).total_seconds()


@pytest.fixture
def events(reconciler):
    """Return event and operation of each entry after the first, which opens the record."""
    return lambda: [(entry.event, entry.operation, entry.data) for entry in reconciler.journal.entries()[1:]]


def request_that(*outcomes):
    """Return a request with these outcomes in turn, and then always the last one."""
    left = list(outcomes)

    def request(*_):
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return request


def test_a_query_is_repeated_until_the_service_answers(reconciler, messages, passed_s):
    assert reconciler.query(request_that(SILENT, SILENT, "answer")) == "answer"
    assert messages == [f"blazar does not answer; attempt {number} of 12" for number in (1, 2)]
    assert passed_s() == 1 + 2


def test_a_query_ends_after_twelve_attempts_with_pauses_of_at_most_half_a_minute(reconciler, messages, passed_s):
    with pytest.raises(Unreachable):
        reconciler.query(request_that(SILENT))
    assert len(messages) == 11
    assert passed_s() == 1 + 2 + 4 + 8 + 16 + 6 * 30


@pytest.mark.parametrize(("requested_s", "pause_s"), [(0.0, 1), (90.0, 90), (600.0, 600), (9999.0, 600)])
def test_the_program_waits_as_long_as_a_service_asks_but_at_most_ten_minutes(
    reconciler, passed_s, requested_s, pause_s
):
    reconciler.query(request_that(Unreachable("busy", requested_s), "answer"))
    assert passed_s() == pause_s


def test_a_rejected_query_is_not_repeated(reconciler, passed_s):
    with pytest.raises(RequestRejected):
        reconciler.query(request_that(RequestRejected("no"), "answer"))
    assert passed_s() == 0


def test_only_a_rejected_operation_is_recorded_as_failed(reconciler, active_lease, events):
    intent = ("intent", "upload key", {"name": "x"})
    for problem, recorded in ((SILENT, []), (RequestRejected("no"), [("failed", "upload key", {"reason": "no"})])):
        before = len(events())
        with pytest.raises(type(problem)):
            reconciler.perform(active_lease, Operation.UPLOAD_KEY, request_that(problem), name="x")
        assert events()[before:] == [intent, *recorded]


def find_or_create(reconciler, active_lease, find, create):
    return reconciler.find_or_create(
        active_lease, Operation.UPLOAD_KEY, find, create, lambda found: {"id": found}, name="x"
    )


def test_a_resource_that_exists_is_not_created_again(reconciler, active_lease, events):
    create = request_that(AssertionError("nothing is created"))
    assert find_or_create(reconciler, active_lease, request_that("key"), create) == "key"
    assert events() == [("done", "upload key", {"id": "key"})]


def test_after_a_lost_response_the_resource_is_searched_for_before_it_is_created_again(
    reconciler, active_lease, events
):
    find, create = request_that(None, "key"), request_that(SILENT, AssertionError("created twice"))
    assert find_or_create(reconciler, active_lease, find, create) == "key"
    assert [event for event, *_ in events()] == ["intent", "done"]


def test_the_error_of_a_rejected_deletion_is_raised_after_the_other_deletions(reconciler, active_lease, events):
    resources, deleted = [SimpleNamespace(id=id) for id in "abc"], []

    def delete(resource):
        if resource.id != "b":
            raise RequestRejected(f"{resource.id} is in use")
        deleted.append(resource.id)

    with pytest.raises(RequestRejected, match="a is in use"):
        reconciler.delete_all(active_lease, Operation.DELETE_KEY, lambda: resources, delete)
    assert deleted == ["b"]
    assert [(event, data.get("id")) for event, _, data in events()] == [
        *(("intent", "a"), ("failed", None), ("intent", "b"), ("done", "b"), ("intent", "c"), ("failed", None))
    ]


def test_an_interrupted_deletion_continues_with_what_is_left(reconciler, active_lease, passed_s):
    left = [SimpleNamespace(id=id) for id in "ab"]
    delete = request_that(None, SILENT, None)
    reconciler.delete_all(
        active_lease, Operation.DELETE_KEY, lambda: list(left), lambda one: (delete(), left.remove(one))
    )
    assert (left, passed_s()) == ([], 1)


def server(status, task=""):
    return SimpleNamespace(status=status, task=task)


@pytest.mark.parametrize(("limit_s", "reported_s"), [(400, range(0, 401, 60)), (600, range(0, 601, 80))])
def test_a_wait_reports_an_unchanged_status_at_intervals_until_its_time_limit(
    reconciler, messages, passed_s, limit_s, reported_s
):
    answer = reconciler.wait("server node", request_that(server("BUILD", "spawning")), lambda now: False, limit_s)
    assert (answer, passed_s()) == (None, limit_s + 10)
    assert messages == [
        f"server node: BUILD, spawning, for {seconds / 60:.0f} of up to {limit_s / 60:.0f} minutes"
        for seconds in reported_s
    ]


def test_a_wait_reports_each_new_status_and_returns_the_response_with_the_expected_status(
    reconciler, messages, passed_s
):
    answers = request_that(server("PENDING"), server("PENDING"), server("STARTING"), server("ACTIVE"))
    found = reconciler.wait(
        "lease a", answers, lambda now: now.status == "ACTIVE", 600, every_s=2, remaining=lambda now: "starts soon"
    )
    assert (found.status, passed_s()) == ("ACTIVE", 6)
    assert messages == ["lease a: PENDING, starts soon", "lease a: STARTING, starts soon"]


def test_a_wait_continues_after_a_response_without_a_status(reconciler, messages):
    assert reconciler.wait("volume a", request_that(None, "made"), lambda now: now is not None, 600) == "made"
    assert messages == ["volume a: waiting, for 0 of up to 10 minutes"]
