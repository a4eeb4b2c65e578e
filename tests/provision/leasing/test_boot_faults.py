"""Failed boots: a node is replaced only if its host caused the failure. The site is a fake with nova's messages."""

from dataclasses import replace
from datetime import timedelta

import pytest

from provision.errors import BadHostKey, BootFailed, LeaseGone, LoginRejected, NotReached, RequestRejected
from provision.leasing import boot, boot_faults
from provision.leasing.boot_faults import HOST, IMAGE, KEY, NETWORK, QUOTA, REMOVED, SERVICE, cause_of
from provision.leasing.lease import lease
from tests.support.leasing.fake_site import HOUR, NOW, FakeSite, hosts_of

FAULTS = {
    "no power on 1": HOST,
    "No valid host was found. There are not enough hosts available.": HOST,
    "Failed to provision instance: Timeout reached while waiting for callback for node": HOST,
    "not ACTIVE after 40 minutes": HOST,
    "Image 5f6d is unacceptable: Image has no associated data": IMAGE,
    "Image 5f6d is not active.": IMAGE,
    "Image 5f6d could not be found.": IMAGE,
    "Failed to allocate the network(s), not rescheduling.": NETWORK,
    "No fixed IP addresses available for network: 5f6d": NETWORK,
    "Unable to attach VIF to node: neutron said no": NETWORK,
    "Quota exceeded for instances: Requested 1, but already used 10 of 10": QUOTA,
    "Keypair llm-testbed-0 not found for user me": KEY,
    "MessagingTimeout: Timed out waiting for a reply to message ID 5f6d": SERVICE,
    "deleted by somebody else": REMOVED,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_of_a_failed_boot_is_read_from_the_message_of_the_fault(fault):
    assert cause_of(fault) is FAULTS[fault]


class FaultySite(FakeSite):
    """Every server fails with the same fault."""

    words = ""

    def create_server(self, name, tag, reservation_id, source):
        super().create_server(name, tag, reservation_id, source)
        self.booted[-1] = replace(self.booted[-1], status="ERROR", fault=self.words)
        return self.booted[-1]


@pytest.mark.parametrize(
    ("words", "attempts", "hosts"),
    [
        ("Image 5f6d is not active.", 1, {"1"}),
        ("Quota exceeded for instances", 1, {"1"}),
        ("Keypair llm-testbed-0 not found", 1, {"1"}),
        ("deleted by somebody else", 3, {"1"}),
        ("glance: service unavailable", 3, {"1"}),
        ("Failed to allocate the network(s)", 3, {"1"}),
        ("no power", 3, {"1", "2", "3"}),
    ],
)
@pytest.mark.usefixtures("reachable")
def test_only_a_boot_that_failed_because_of_the_host_excludes_its_node(
    reconciler, lease_request, words, attempts, hosts
):
    site = FaultySite(hosts_of(4))
    site.words = words
    with pytest.raises(BootFailed) as failed:
        lease(site, reconciler, lease_request())
    assert words in str(failed.value)
    assert str(failed.value).endswith(cause_of(words).fix)
    assert len(site.attempts) == attempts
    assert {host for _, host in site.attempts} == hosts
    spent = reconciler.journal.active_lease("llm_cc").failed_hosts
    assert set(spent) == (hosts if cause_of(words) is boot_faults.HOST else set())


@pytest.mark.parametrize("method", ["image_id", "check_boot_requirements"])
def test_missing_requirements_of_a_boot_are_reported_before_leasing(reconciler, lease_request, method, monkeypatch):
    site = FakeSite()
    monkeypatch.setattr(site, method, lambda *_: (_ for _ in ()).throw(RequestRejected("2 images")))
    with pytest.raises(RequestRejected, match="2 images"):
        lease(site, reconciler, lease_request())
    assert site.remaining_resources() == []
    assert reconciler.journal.active_leases() == {}


def failing_login(*problems):
    """Return a fake login that fails with these problems in turn, then always with the last one."""
    left = list(problems)

    def attempt(login):
        problem = left.pop(0) if len(left) > 1 else left[0]
        if problem:
            raise problem

    return attempt


def minutes(reconciler):
    return (reconciler.clock.now() - NOW).total_seconds() / 60


def test_a_rejected_key_is_reported_with_the_message_of_ssh(reconciler, lease_request, monkeypatch):
    monkeypatch.setattr(
        boot, "try_login", failing_login(NotReached("refused"), LoginRejected("Permission denied (publickey)"))
    )
    with pytest.raises(LoginRejected, match=r"node rejects the SSH key key \(Permission denied .*--key"):
        lease(FakeSite(), reconciler, lease_request())
    assert 5 <= minutes(reconciler) < 7


def test_a_key_may_be_rejected_until_the_node_has_installed_it(reconciler, lease_request, monkeypatch, messages):
    rejected = LoginRejected("Permission denied (publickey)")
    monkeypatch.setattr(
        boot, "try_login", failing_login(*20 * [rejected], NotReached("refused"), *20 * [rejected], None)
    )
    assert lease(FakeSite(), reconciler, lease_request()).machines
    assert "SSH to node: Permission denied (publickey), for 0 of up to 20 minutes" in messages


def test_a_changed_host_key_is_reported_at_once(reconciler, lease_request, monkeypatch):
    monkeypatch.setattr(boot, "try_login", failing_login(BadHostKey("differs; ssh-keygen -R")))
    with pytest.raises(BadHostKey, match="ssh-keygen -R"):
        lease(FakeSite(), reconciler, lease_request())
    assert minutes(reconciler) == 0


def test_a_silent_node_is_reported_with_the_last_message_of_ssh(reconciler, lease_request, monkeypatch):
    monkeypatch.setattr(boot, "try_login", failing_login(NotReached("192.0.2.1: No route to host")))
    with pytest.raises(NotReached, match=r"SSH does not answer .*No route to host"):
        lease(FakeSite(), reconciler, lease_request())
    assert 20 <= minutes(reconciler) < 21


@pytest.mark.parametrize(("kinds", "error"), [(("booted",), BootFailed), (("booted", "held"), LeaseGone)])
def test_the_program_does_not_wait_for_a_deleted_node(reconciler, lease_request, monkeypatch, kinds, error):
    site = FakeSite()

    def attempt(login):
        for kind in kinds:
            getattr(site, kind).clear()
        raise NotReached("timed out")

    monkeypatch.setattr(boot, "try_login", attempt)
    with pytest.raises(error, match="somebody else"):
        lease(site, reconciler, lease_request())
    assert minutes(reconciler) < 1


@pytest.mark.usefixtures("reachable")
def test_a_lease_that_moves_to_other_nodes_keeps_an_extension_made_during_the_boot(reconciler, lease_request):
    site = FakeSite(broken={"1"})

    def extend_lease_at_deletion(operation):
        if operation == "delete server":
            site.held = [replace(one, end=one.end + HOUR) if "1" in one.hosts else one for one in site.held]

    site.before = extend_lease_at_deletion
    leased = lease(site, reconciler, lease_request())
    assert (leased.lease.hosts, leased.lease.end) == (("2",), site.held[0].end)
    assert leased.lease.end >= NOW + 4 * HOUR


@pytest.mark.usefixtures("reachable")
def test_the_program_waits_for_a_lease_whose_start_was_moved(reconciler, lease_request, monkeypatch):
    site = FakeSite(lease_status="PENDING")
    begin, moved = NOW + HOUR, NOW + 3 * HOUR

    def leases():
        now = reconciler.clock.now()
        changed = [replace(one, start=moved if now > begin else one.start) for one in site.held]
        return [replace(one, status="ACTIVE" if now > moved + timedelta(minutes=1) else "PENDING") for one in changed]

    monkeypatch.setattr(site, "leases", leases)
    leased = lease(site, reconciler, replace(lease_request(start=begin), starts_now=False))
    assert (leased.lease.status, leased.lease.start) == ("ACTIVE", moved)
