"""Release at the end of a run, however it ends, at a fake site."""

import pytest

from provision.errors import BootFailed, LeaseMismatch, NotReached, NotReleased
from provision.leasing import boot
from provision.leasing.lease import lease
from provision.leasing.release import release_on_exit
from tests.support.leasing.fake_site import FakeSite

pytestmark = pytest.mark.usefixtures("reachable")


def run_with_lease(site, reconciler, lease_request, what=lambda: None):
    with release_on_exit(site, reconciler, lease_request.name):
        lease(site, reconciler, lease_request)
        what()


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_release_at_the_end_of_a_command_is_reported(reconciler, lease_request, messages):
    site = FakeSite()
    run_with_lease(site, reconciler, lease_request())
    assert site.remaining_resources() == []
    assert messages[-1] == "llm_cc is released; nothing is left at CHI@UC"


def test_a_lease_is_released_if_its_nodes_do_not_boot(reconciler, lease_request, messages):
    site = FakeSite(broken={"1", "2"})
    with pytest.raises(BootFailed, match="no power"):
        run_with_lease(site, reconciler, lease_request())
    assert site.remaining_resources() == []
    assert any("no power" in line and line.endswith("releasing lease llm_cc") for line in messages)


def test_a_lease_is_released_if_ssh_does_not_answer(reconciler, lease_request, monkeypatch):
    def fail_to_log_in(login):
        raise NotReached("no route to host")

    monkeypatch.setattr(boot, "try_login", fail_to_log_in)
    site = FakeSite()
    with pytest.raises(NotReached, match=r"node runs, but SSH does not answer \(no route to host\)"):
        run_with_lease(site, reconciler, lease_request())
    assert site.remaining_resources() == []


@pytest.mark.parametrize("operation", ["create lease", "create server", None])
def test_a_lease_is_released_if_the_command_is_interrupted(operation, reconciler, lease_request, messages):
    site = FakeSite()
    site.before = lambda now: interrupt() if now == operation else None
    with pytest.raises(KeyboardInterrupt):
        run_with_lease(site, reconciler, lease_request(), interrupt)
    assert site.remaining_resources() == []
    assert "interrupted; releasing lease llm_cc" in messages
    assert reconciler.journal.active_leases() == {}


def test_an_interrupted_release_reports_what_remains(reconciler, lease_request, messages):
    site = FakeSite()
    site.before = lambda now: interrupt() if now == "delete key" else None
    with pytest.raises(KeyboardInterrupt):
        run_with_lease(site, reconciler, lease_request(), interrupt)
    assert site.held == []
    (key,) = site.uploaded
    assert messages[-2:] == [
        f"llm_cc is not released; still at CHI@UC: key {key.id}; run: testbed release llm_cc",
        "it costs nothing",
    ]


def test_an_incomplete_release_names_what_remains(reconciler, lease_request, messages, monkeypatch):
    site = FakeSite()
    monkeypatch.setattr(site, "delete_lease", lambda lease: None)
    with pytest.raises(NotReleased, match=r"still at CHI@UC after release: lease lease-1; run the release again"):
        run_with_lease(site, reconciler, lease_request())
    assert "llm_cc is not released; still at CHI@UC: lease lease-1; run: testbed release llm_cc" in messages
    assert messages[-1].startswith("lease llm_cc at CHI@UC costs service units until ")
    assert reconciler.journal.active_lease("llm_cc")


def test_an_existing_lease_that_does_not_satisfy_the_request_is_not_released(reconciler, lease_request):
    site = FakeSite()
    lease(site, reconciler, lease_request())
    with pytest.raises(LeaseMismatch):
        run_with_lease(site, reconciler, lease_request(host_count=2))
    assert len(site.held) == 1
