"""Faults while the credential of a lease that ends itself is created or deleted.

One credential remains, or none after a release, and the next command resumes.

The boot and the setup of the node are fakes; the tests of leasing boot servers, and those of nodes run the setup.
"""

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from openstack.exceptions import ForbiddenException

from provision.configure import end_when_idle
from provision.configure.end_when_idle import set_up_end_when_idle
from provision.errors import RequestRejected, Unreachable
from provision.leasing import release
from provision.leasing.journal import Operation
from provision.leasing.lease import lease
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import EndWhenIdle
from provision.models import TaggedResource
from provision.sites.credentials import TEST_PREFIX
from tests.testbed.chameleon.conftest import FakeClock, left_at
from tests.testbed.chameleon.test_faults import InterceptedJournal

END_WHEN_IDLE = EndWhenIdle(timedelta(minutes=30))
NOT_SET_UP = "ACTIVE, does not end itself: its setup did not finish"


@pytest.fixture(autouse=True)
def setup_variables(monkeypatch, fake_boot):
    """Return the list of the credentials with which the node was set up."""
    given = []
    monkeypatch.setattr(
        end_when_idle, "configure_end_when_idle", lambda machine, variables, report: given.append(variables)
    )
    return given


@pytest.fixture
def active_lease(site, reconciler, lease_request):
    lease(site, reconciler, lease_request())
    return release.get_active_lease(reconciler, "llm_cc")


@pytest.fixture
def losing_answer(site, local_openstack, tmp_path):
    """Return a function that takes an operation and returns a reconciler and a list.

    The reconciler loses keystone's answer to the first attempt of the operation. When it reports the lost answer, the
    credentials that exist at that moment are added to the list.
    """

    def make_reconciler(lost: Operation) -> tuple[Reconciler, list[list[TaggedResource]]]:
        keystone, listed = local_openstack.proxies["keystone"], []

        def on_operation(operation, attempt):
            if (operation, attempt) == (lost, 1):
                keystone.set_fault("deaf")

        def report(line):
            if "attempt" in line:
                assert "keystone does not answer" in line
                keystone.repair()
                listed.append(site.lease_credentials())

        return Reconciler(InterceptedJournal(tmp_path / "state", on_operation), FakeClock(), report), listed

    return make_reconciler


def status_text(testbed) -> str:
    return " ".join(testbed("status")[1].split())


def release_lease(site, reconciler) -> None:
    release.release(site, reconciler, release.get_active_lease(reconciler, "llm_cc"))
    assert left_at(site) == []


def test_a_credential_whose_creation_got_no_response_is_replaced_by_one_that_the_node_gets(
    site, reconciler, active_lease, losing_answer, setup_variables
):
    make_reconciler, listed = losing_answer(Operation.CREATE_CREDENTIAL)
    set_up_end_when_idle(site, make_reconciler, "llm_cc", END_WHEN_IDLE)
    (((lost,),), (only,)) = listed, site.lease_credentials()
    assert lost.id != only.id == setup_variables[-1]["end_when_idle_credential_id"]
    release_lease(site, reconciler)


def test_a_credential_that_an_earlier_request_creates_late_is_replaced(
    site, reconciler, active_lease, monkeypatch, setup_variables
):
    list_now, (held,) = site.lease_credentials, site.leases()
    late: list[str] = []

    def listed_before_the_late_one():
        found = list_now()
        if not late:
            late.append(site._create(active_lease.tag, held.id, held.end).id)
        return found

    monkeypatch.setattr(site, "lease_credentials", listed_before_the_late_one)
    set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    (only,) = list_now()
    assert late[0] != only.id == setup_variables[-1]["end_when_idle_credential_id"]


def test_if_the_response_to_the_deletion_of_a_credential_is_lost_no_credential_is_left(
    site, reconciler, active_lease, losing_answer
):
    set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    make_reconciler, listed = losing_answer(Operation.DELETE_CREDENTIAL)
    release_lease(site, make_reconciler)
    assert listed == [[]]


def test_a_rejected_credential_is_reported_in_one_line_and_the_lease_stays(
    testbed, site, reconciler, active_lease, monkeypatch
):
    def forbidden(*_, **__):
        raise ForbiddenException("policy does not allow it", http_status=403)

    with monkeypatch.context() as patched:
        patched.setattr(site.sdk.identity, "create_application_credential", forbidden)
        with pytest.raises(RequestRejected, match=r"^keystone rejects the request \(403\): policy does not allow it"):
            set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    assert (len(site.leases()), site.lease_credentials(), NOT_SET_UP in status_text(testbed)) == (1, [], True)
    release_lease(site, reconciler)


def test_if_keystone_does_not_recover_the_command_fails_and_the_next_one_completes_the_setup(
    testbed, site, reconciler, active_lease, local_openstack
):
    local_openstack.proxies["keystone"].set_fault("500")
    with pytest.raises(Unreachable, match=r"keystone has an error \(500\)"):
        set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    local_openstack.repair()
    assert NOT_SET_UP in status_text(testbed)
    set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    assert "ACTIVE, ends after 30m without work" in status_text(testbed)
    assert len(site.lease_credentials()) == 1


@pytest.mark.parametrize("next_command", [("extend", "--by", "1h", "--yes"), ("release", "--yes")])
def test_what_a_command_interrupted_after_the_creation_left_is_completed_or_deleted_by_the_next(
    testbed, site, reconciler, active_lease, monkeypatch, next_command
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(end_when_idle, "configure_end_when_idle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    (orphan,) = site.lease_credentials()
    assert NOT_SET_UP in status_text(testbed)
    assert testbed("orphans")[1] == "no leaked resources\n"
    assert testbed(*next_command)[0] == 0
    assert orphan.id not in {one.id for one in site.lease_credentials()}
    if next_command[0] == "extend":
        assert "ACTIVE, ends after 30m without work" in status_text(testbed)
        release_lease(site, reconciler)
    assert left_at(site) == []


def test_a_trial_credential_that_a_killed_program_left_is_deleted_by_the_next_trial(site):
    ends = datetime.now(UTC) + timedelta(seconds=2)
    left, others = (
        site._create(f"{TEST_PREFIX}{name}", str(uuid4()), end).id
        for name, end in (("killed", ends), ("running", ends + timedelta(minutes=2)))
    )
    assert site.lease_credentials() == []
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
    site.try_lease_credential()
    listed = {one.id for one in site.sdk.identity.application_credentials(site.user_id())}
    assert (left in listed, others in listed) == (False, True)
    site.sdk.identity.delete_application_credential(site.user_id(), others)


def test_a_lease_of_two_nodes_is_rejected_before_a_credential_exists(site, reconciler, lease_request):
    lease(site, reconciler, lease_request(host_count=2))
    with pytest.raises(RequestRejected, match=r"^lease llm_cc has 2 nodes; --end-when-idle is allowed with one node$"):
        set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    assert site.lease_credentials() == []
