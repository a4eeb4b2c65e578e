"""The OpenStack testbed as fixtures, and clients of it whose waits take almost no time."""

import io
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import app
from provision.clock import Clock
from provision.leasing import boot
from provision.leasing.journal import Journal, Machine
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest, LeaseTask
from provision.models import Lease, Requirements
from provision.sites.base import CredentialIssuer, LeasingSite, connect_to
from provision.sites.kvm import Kvm
from provision.ssh.login import KeyPair, Login
from tests.support.needs import need
from tests.testbed.openstack import hardware
from tests.testbed.openstack.local_openstack import LocalOpenStack, open_local_openstack
from tests.testbed.sshd import FloatingSshd

REAL_S = 0.5
SHORT_WAITS = 5
A100 = "gpu_a100_pcie"
REGIONS = {"chameleon": hardware.BARE_METAL, "kvm": hardware.KVM}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        "leasing, against real keystone, nova, neutron, glance, placement and blazar; "
        "fakes: hardware, the network's data plane, volumes, the reference API"
    )


class FakeClock(Clock):
    """Waits at most REAL_S, and moves ahead by the requested time, multiplied by ``speed``.

    The first waits are shorter, and move the clock less: most of the things that a test waits for happen at once.
    """

    def __init__(self, speed: float = 1) -> None:
        self.speed, self.skipped_s, self.waits = speed, 0.0, 0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.skipped_s

    def sleep(self, seconds: float) -> None:
        self.waits += 1
        part = min(self.waits / SHORT_WAITS, 1)
        time.sleep(min(seconds, REAL_S) * part)
        self.skipped_s += seconds * part * self.speed


@pytest.fixture(scope="session")
def local_openstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOpenStack]:
    opened = open_local_openstack(tmp_path_factory.mktemp("openstack"))
    yield opened
    opened.stop()


@pytest.fixture(scope="session")
def sshd(
    local_openstack: LocalOpenStack, key: KeyPair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FloatingSshd]:
    """Run a real sshd on every floating IP, as booted nodes would."""
    need(("sshd", "unshare"), "openssh-server util-linux", root=True)
    daemon = FloatingSshd(tmp_path_factory.mktemp("sshd"), local_openstack.place.floating, key)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def account(local_openstack: LocalOpenStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set the environment variables of a user of the testbed, with an empty home folder."""
    from chi import context

    for name, value in local_openstack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "state"))
    monkeypatch.setattr(context, "RESOURCE_API_URL", local_openstack.environment()["CHI_RESOURCE_API_URL"])


@pytest.fixture
def connected(
    local_openstack: LocalOpenStack, account: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LeasingSite]]:
    """Connect to a site by name as a user; delete what the test left behind."""
    connections = []

    def connect(name: str, user: str = "cc") -> LeasingSite:
        for variable, value in local_openstack.environment(REGIONS[name], user).items():
            monkeypatch.setenv(variable, value)
        connections.append(connect_to(name))
        return connections[-1]

    yield connect
    local_openstack.repair()
    for one in connections:
        empty(one)


@pytest.fixture
def site(connected: Callable[[str], LeasingSite]) -> LeasingSite:
    """Connect to the bare-metal site."""
    return connected("chameleon")


@pytest.fixture
def testbed(
    site: LeasingSite, key: KeyPair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; return exit code, stdout and stderr."""
    monkeypatch.setattr("provision.clock.Clock", FakeClock)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main(arguments)
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def reconciler(messages: list[str], tmp_path: Path) -> Reconciler:
    return Reconciler(Journal(tmp_path / "state"), FakeClock(), messages.append)


@pytest.fixture
def lease_request(key: KeyPair) -> Callable[..., LeaseRequest]:
    """Return a function that requests a node for three hours from now; its arguments are further requirements."""

    def make(name: str = "llm_cc", **requirements: object) -> LeaseRequest:
        fields: dict[str, Any] = {"length": timedelta(hours=3), "node_type": A100, **requirements}
        return LeaseRequest(name, "node-llm-cc", Requirements(**fields), key, starts_now="start" not in requirements)

    return make


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every server answer SSH, for tests that are not about SSH."""
    monkeypatch.setattr(boot, "try_login", lambda login: None)


@pytest.fixture
def fake_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the nodes of an active lease answer SSH without servers, for tests of what follows a boot."""

    def bring_up(task: LeaseTask, active: Lease) -> tuple[str, tuple[Machine, ...]]:
        request, journal = task.lease_request, task.reconciler.journal
        machines = tuple(
            Machine(name, Login("192.0.2.1", name, request.key.file, journal.known_hosts))
            for name in request.server_names
        )
        for machine in machines:
            journal.record_machine(task.initial_record, machine)
        return "fake image", machines

    monkeypatch.setattr("provision.leasing.lease.bring_up", bring_up)


def empty(site: LeasingSite) -> None:
    """Delete all resources of the project at the site."""
    reconciler = Reconciler(None, FakeClock(), lambda line: None)
    kinds: tuple[tuple[Any, Any], ...] = (
        (site.servers, site.delete_server),
        *([(site.volumes, site.delete_volume)] if isinstance(site, Kvm) else []),
        (site.addresses, site.release_address),
        (site.keys, site.delete_key),
        *([(site.security_groups, site.delete_security_group)] if isinstance(site, Kvm) else []),
        (site.leases, site.delete_lease),
        *([(site.lease_credentials, site.delete_lease_credential)] if isinstance(site, CredentialIssuer) else []),
    )
    for listed, delete in kinds:
        for resource in reconciler.query(listed):
            reconciler.query(partial(delete, resource))
    reconciler.wait("servers", site.servers, lambda left: not left, limit_s=10_000)


def left_at(site: LeasingSite) -> list[Any]:
    """Return all resources of the project at the site, queried from every service."""
    of_kvm: list[Any] = [*site.volumes(), *site.security_groups()] if isinstance(site, Kvm) else []
    credentials = site.lease_credentials() if isinstance(site, CredentialIssuer) else []
    return [*site.servers(), *site.addresses(), *site.keys(), *of_kvm, *credentials, *site.leases()]
