"""A lease that ends itself, at real services: the rights of its credential, and the client's report of the end.

Fakes: the setup of the node, which tests/testbed/node/end_when_idle tests, and its boot, except in one test.
"""

import json
from datetime import UTC, datetime, timedelta

import openstack
import pytest
from openstack.exceptions import HttpException

from experiments.runners.targets import target_named
from provision.configure import end_when_idle as module
from provision.configure.end_when_idle import set_up_end_when_idle
from provision.errors import NotReached
from provision.leasing import boot, release
from provision.leasing.lease import lease
from provision.leasing.request import EndWhenIdle
from tests.support.leasing import idle_check
from tests.testbed.chameleon.conftest import left_at
from tests.testbed.openstack.settings import PORTS

check = idle_check.load()
HALF_HOUR = timedelta(minutes=30)
END_WHEN_IDLE = EndWhenIdle(HALF_HOUR)


class IdleNode:
    """A fake node that is idle and whose results are saved."""

    def find_work(self):
        return []

    def marks(self):
        return {}

    def save_results(self):
        """Save nothing."""


@pytest.fixture
def variables(monkeypatch, reachable):
    """Record the variables with which the node is set up."""
    given = []
    monkeypatch.setattr(module, "configure_end_when_idle", lambda machine, variables, report: given.append(variables))
    return given


@pytest.fixture
def leased(site, reconciler, lease_request, variables, tmp_path):
    """Return a function that leases a node that ends its lease, and returns the settings of its check."""

    def lease_node():
        lease(site, reconciler, lease_request())
        set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
        return settings_of(variables[-1], tmp_path)

    return lease_node


@pytest.fixture
def settings(leased, fake_boot):
    """The settings of the check of a node that has not booted."""
    return leased()


def settings_of(variables, home):
    values = {name.removeprefix("end_when_idle_"): value for name, value in variables.items()}
    return check.Settings(idle_s=values.pop("after_s"), home=str(home), **values)


def credential_of(site, held):
    """Return the only credential with the tag of the lease."""
    (made,) = [one for one in site.sdk.identity.application_credentials(site.user_id()) if one.name == held.tag]
    return made


@pytest.fixture
def restricted_session(settings):
    """Return a connection with the credential that the node gets."""
    return openstack.connect(
        load_envvars=False,
        load_yaml_config=False,
        auth_type="v3applicationcredential",
        auth_url=settings.auth_url,
        application_credential_id=settings.credential_id,
        application_credential_secret=settings.secret,
        region_name="CHI@UC",
    )


def status_code(session, method, url, **body):
    return session.request(url, method, raise_exc=False, endpoint_filter=None, **body).status_code


def test_the_credential_can_read_and_delete_its_lease_and_nothing_else(
    site, settings, restricted_session, local_openstack
):
    session, leases = restricted_session.session, settings.lease_url.rpartition("/")[0]
    (held,) = site.leases()
    services = {
        name: f"http://{local_openstack.place.outer}:{PORTS[name]}"
        for name in ("nova", "neutron", "glance", "keystone")
    }
    new = {"name": "new", "start_date": "now", "end_date": "2030-01-01 00:00", "reservations": [], "events": []}
    me = site.user_id()
    for method, url, body in (
        ("GET", leases, {}),
        ("POST", leases, {"json": new}),
        ("PUT", settings.lease_url, {"json": {"name": "renamed"}}),
        ("GET", leases.replace("leases", "os-hosts"), {}),
        ("GET", f"{services['nova']}/v2.1/servers", {}),
        ("GET", f"{services['neutron']}/v2.0/networks", {}),
        ("GET", f"{services['glance']}/v2/images", {}),
        ("GET", f"{services['keystone']}/v3/users/{me}/application_credentials", {}),
        ("DELETE", f"{services['keystone']}/v3/users/{me}/application_credentials/{settings.credential_id}", {}),
        ("GET", f"{services['keystone']}/v3/auth/projects", {}),
    ):
        assert status_code(session, method, url, **body) in (401, 403), (method, url)
    with pytest.raises(HttpException):
        restricted_session.identity.create_application_credential(me, name="more", unrestricted=True)
    assert site.leases() == [held]
    assert status_code(session, "GET", settings.lease_url) == 200
    assert status_code(session, "DELETE", settings.lease_url) == 204
    assert site.leases() == []


def test_the_credential_cannot_read_another_lease(site, reconciler, lease_request, settings, restricted_session):
    start = datetime.now(UTC) + timedelta(hours=24)
    other = lease(site, reconciler, lease_request("llm_other", start=start), wait=False).lease
    url = settings.lease_url.replace(settings.lease_url.rpartition("/")[2], other.id)
    for method in ("GET", "DELETE"):
        assert status_code(restricted_session.session, method, url) == 401
    assert other.id in {one.id for one in site.leases()}


def test_the_credential_is_restricted_and_expires_with_the_lease(site, settings):
    (held,) = site.leases()
    made = credential_of(site, held)
    assert made.unrestricted is False
    assert datetime.fromisoformat(made.expires_at).replace(tzinfo=UTC) == held.end


def test_the_idle_check_on_the_node_ends_the_lease_and_the_client_reports_this(
    testbed, site, reconciler, leased, monkeypatch
):
    def unreachable(shell):
        raise NotReached("no route to host")

    settings = leased()
    assert len(site.servers()) == 1
    assert "ACTIVE, ends after 30m" in " ".join(testbed("status")[1].split())
    now = check.read_clock()
    idle = check.CheckState(now.wall_s - 60, now.passed_s - 60, now.boot, now.passed_s - settings.idle_s, {})
    line = check.check(settings, IdleNode(), check.Lease(settings), idle, now)[1]
    assert line == "the results are saved and the lease is ended"
    assert site.leases() == []
    reconciler.wait("servers", site.servers, lambda left: not left, limit_s=10_000)
    monkeypatch.setattr("experiments.runners.targets.remote_node", unreachable)
    with pytest.raises(Exception, match=r"lease llm_cc was deleted: either it ended itself after 30m without work \("):
        target_named("chameleon", None, None, reconciler.journal)
    assert "it ended itself after 30m without work" in " ".join(testbed("status")[1].split())
    assert check.Lease(settings).status() is None
    assert testbed("release", "--yes")[0] == 0
    assert left_at(site) == []


@pytest.mark.parametrize("service", ["keystone", "blazar"])
@pytest.mark.parametrize("fault", ["500", "gone"])
def test_a_lease_does_not_end_itself_while_a_service_does_not_answer_and_ends_afterwards(
    site, settings, local_openstack, service, fault
):
    now = check.read_clock()
    idle = check.CheckState(now.wall_s - 60, now.passed_s - 60, now.boot, now.passed_s - settings.idle_s, {})
    local_openstack.proxies[service].set_fault(fault)
    state, line = check.check(settings, IdleNode(), check.Lease(settings), idle, now)
    local_openstack.repair()
    assert f"but the lease continues: {service}" in line
    assert len(site.leases()) == 1
    assert "is ended" in check.check(settings, IdleNode(), check.Lease(settings), state, check.read_clock())[1]
    assert site.leases() == []


def test_no_secret_is_in_the_journal_or_in_messages(settings, reconciler, messages, capsys):
    written = b"".join(path.read_bytes() for path in reconciler.journal.folder.rglob("*") if path.is_file())
    assert settings.credential_id.encode() in written
    assert settings.secret.encode() not in written
    assert settings.secret not in "".join([*messages, *capsys.readouterr(), repr(settings)])


def test_a_second_setup_replaces_the_credential(site, reconciler, settings, variables, tmp_path):
    set_up_end_when_idle(site, reconciler, "llm_cc", END_WHEN_IDLE)
    (only,) = site.lease_credentials()
    newer = settings_of(variables[-1], tmp_path)
    assert (only.id, newer.secret != settings.secret) == (newer.credential_id, True)
    with pytest.raises(check.CheckFailed, match="keystone responds"):
        check.Lease(settings).status()
    assert check.Lease(newer).status() == "ACTIVE"


def test_an_extended_lease_gets_a_credential_that_is_valid_as_long_as_the_lease(testbed, site, settings, variables):
    assert testbed("extend", "--by", "1h", "--yes")[0] == 0
    (held,) = site.leases()
    made = credential_of(site, held)
    assert datetime.fromisoformat(made.expires_at).replace(tzinfo=UTC) == held.end
    assert len(variables) == 2


def test_a_credential_whose_lease_no_longer_exists_is_listed_by_orphans(testbed, site, reconciler, settings):
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    reconciler.journal.write("closed", active_lease)
    orphans = json.loads(testbed("orphans", "--json")[1])["orphans"]
    assert f"credential {settings.credential_id}" in orphans[active_lease.tag]["resources"]
    assert testbed("orphans", "--clean", "--yes")[0] == 0
    assert left_at(site) == []


def test_the_command_doctor_shows_that_a_lease_can_end_itself_and_leaves_no_credential(testbed, site, key):
    out = testbed("doctor", "--site", "chameleon", "--key", str(key.file))[1]
    assert "end when idle: possible" in " ".join(out.split())
    assert site.lease_credentials() == []


def test_if_the_site_rejects_the_credential_the_setup_fails_and_leaves_nothing(
    testbed, site, key, variables, monkeypatch
):
    flags = ("lease", "--node-type", "gpu_a100_pcie", "--start", "now", "--hours", "2", "--key", str(key.file), "--yes")
    monkeypatch.setattr(boot, "try_login", lambda login: None)
    monkeypatch.setattr(type(site), "_status_of_lease", lambda self, credential: 401)
    code, _, err = testbed(*flags, "--end-when-idle", "30m")
    assert (code, "blazar responds with 401 to a credential with access rules" in err) == (3, True)
    assert left_at(site) == []
