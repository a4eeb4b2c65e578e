"""Preflight checks, passed and failed: a failed one names its fix. The site is a fake."""

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as keystone_errors

from provision.choices import DISK_IMAGE
from provision.clock import Clock
from provision.errors import NoCredentials, RequestRejected, Unreachable
from provision.leasing import doctor
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Reconciler
from provision.models import Address, Credential
from provision.sites.bare_metal import BareMetal
from provision.sites.faults import translate_errors
from provision.ssh.login import fingerprint, key_pair
from tests.support.leasing.fake_site import IDENTITY

OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl cc@elsewhere"


class FakeSite:
    """A site that passes every check; a test replaces one answer by another value or an error."""

    name = "CHI@UC"

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "identity": IDENTITY,
            "credential": Credential(),
            "hosts": ["a node"],
            "image_id": "1234",
            "check_boot_requirements": "network",
            "check_quota": "1 of 10 servers are used",
            "addresses": [],
            "addresses_left": 3,
            "public_keys": [],
            "service_units_in_words": "not reported by the site's services",
            "clock_skew": timedelta(seconds=1),
            "try_lease_credential": None,
        }

    def __getattr__(self, name):
        def answer(*_):
            if isinstance(self.answers[name], Exception):
                raise self.answers[name]
            return self.answers[name]

        return answer


@pytest.fixture
def site(monkeypatch):
    fake = FakeSite()
    monkeypatch.setattr(doctor, "connect_to", lambda *_: fake)
    return fake


@pytest.fixture
def reconciler(tmp_path):
    return Reconciler(Journal(tmp_path / "state"), Clock(), lambda line: None)


@pytest.fixture(scope="module")
def generated_key(tmp_path_factory):
    file = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    return file


@pytest.fixture
def key(generated_key, tmp_path):
    return shutil.copytree(generated_key.parent, tmp_path / "ssh") / generated_key.name


@pytest.fixture
def failed_lines(site, key, reconciler):
    """Return the lines of the failed checks by name."""
    return lambda: {
        one.name: one.text for one in doctor.check_site("chameleon", key, reconciler) if one.status == "failed"
    }


def test_every_check_passes_at_a_healthy_site(site, key, reconciler, failed_lines):
    assert failed_lines() == {}
    names = [one.name for one in doctor.check_site("chameleon", key, reconciler)]
    assert names == [
        *("local tools", "SSH key", "time zone", "journal", "account"),
        *("credential", "reservations", "image", "boot", "quota", "floating IPs"),
        *("SSH key at the site", "service units", "end when idle", "clock"),
    ]


def test_the_image_that_will_be_booted_is_the_one_that_is_checked(site, key, reconciler):
    site.image_id = lambda name: {"my-image": "5678"}[name]
    texts = {one.name: one.text for one in doctor.check_site("chameleon", key, reconciler, "my-image")}
    assert texts["image"] == "image my-image (5678)"


def test_missing_tools_are_named_with_the_command_that_installs_them(failed_lines, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert failed_lines() == {
        "local tools": "ssh, ssh-keygen missing; install the OpenSSH client (apt install openssh-client)"
    }


def test_the_check_fails_if_the_ssh_key_is_missing(key, failed_lines):
    key.unlink()
    fix = f"SSH key {key} does not exist; create one: ssh-keygen -t ed25519 -f {key}"
    assert failed_lines() == {"SSH key": fix, "SSH key at the site": fix}


def test_the_check_fails_if_others_can_read_the_private_key(key, failed_lines):
    key.chmod(0o644)
    assert failed_lines() == {"SSH key": f"{key} is readable by other users; run: chmod 600 {key}"}


def test_the_check_fails_if_the_public_key_is_invalid(key, failed_lines):
    key.with_suffix(".pub").write_text("ssh-ed25519 A")
    found = failed_lines()
    assert "do not belong together; run: ssh-keygen -y -f" in found["SSH key"]
    assert found["SSH key at the site"].startswith("'ssh-ed25519 A' is not a public SSH key")


def test_the_check_fails_if_the_time_zone_is_unknown(failed_lines, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Helsinky")
    assert "TZ 'Europe/Helsinky' is unknown" in failed_lines()["time zone"]
    monkeypatch.setenv("TZ", ":Europe/Helsinki")
    assert "time zone" not in failed_lines()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Credential(restricted=True), "create one with 'Unrestricted' checked"),
        (Credential(expires_at=datetime.now(UTC) + timedelta(hours=1)), "too early for a lease of 3 h; log in again"),
    ],
)
def test_the_check_fails_if_the_credential_may_not_lease(site, failed_lines, limits, message):
    site.answers["credential"] = limits
    assert message in failed_lines()["credential"]


def test_the_check_passes_if_the_credential_is_valid_for_three_more_hours(site, failed_lines):
    for hours, failed in ((3.5, []), (2.9, ["credential"])):
        site.answers["credential"] = Credential(expires_at=datetime.now(UTC) + timedelta(hours=hours))
        assert list(failed_lines()) == failed


def test_the_check_shows_when_a_credential_expires_that_is_valid_for_longer(site, key, reconciler, failed_lines):
    site.answers["credential"] = Credential(expires_at=datetime(2040, 1, 1, tzinfo=UTC))
    assert failed_lines() == {}
    texts = {one.name: one.text for one in doctor.check_site("chameleon", key, reconciler)}
    assert texts["credential"].startswith("expires 2040-01-01 00:00 UTC")


def test_the_check_fails_if_another_version_wrote_the_journal(reconciler, failed_lines):
    reconciler.journal.folder.mkdir()
    (reconciler.journal.folder / "ledger.jsonl").write_text(json.dumps({"version": 9}) + "\n")
    assert "move the file away" in failed_lines()["journal"]


def test_without_an_account_the_site_is_not_queried(site, key, reconciler, failed_lines):
    site.answers["identity"] = NoCredentials("credentials: no account; set OS_* variables")
    assert failed_lines() == {"account": "credentials: no account; set OS_* variables"}
    left_out = [one for one in doctor.check_site("chameleon", key, reconciler) if one.status == "not checked"]
    assert [one.name for one in left_out] == list(doctor.SITE_CHECKS)
    assert left_out[0].line == "skip  credential: needs account"


@pytest.mark.parametrize(
    ("answer", "value", "check", "fix"),
    [
        (
            "hosts",
            Unreachable("blazar does not answer"),
            "reservations",
            "retry later, and check chameleoncloud.org for outages",
        ),
        (
            "image_id",
            Unreachable("glance does not answer"),
            "image",
            "retry later, and check chameleoncloud.org for outages",
        ),
        ("check_quota", RequestRejected("10 of 10 servers; delete one"), "quota", "delete one"),
        ("addresses_left", 0, "floating IPs", "release one of your addresses, or ask the site's help desk"),
        ("clock_skew", timedelta(minutes=-5), "clock", "300 s off the site's; set it: timedatectl set-ntp true"),
    ],
)
def test_a_problem_at_the_site_is_reported_with_a_fix(site, failed_lines, answer, value, check, fix):
    site.answers[answer] = value
    found = failed_lines()
    assert list(found) == [check]
    assert fix in found[check]


@pytest.mark.parametrize(("addresses", "named"), [([Address("1", "192.0.2.1")], "192.0.2.1"), ([], "none")])
def test_an_unattached_address_of_the_project_is_named_but_not_used(site, failed_lines, addresses, named):
    site.answers |= {"addresses": [*addresses, Address("2", "192.0.2.2", server="1")], "addresses_left": 0}
    assert failed_lines()["floating IPs"].endswith(f"unattached addresses: {named}")


@pytest.mark.parametrize(
    ("answer", "value", "check", "text"),
    [
        ("addresses_left", 3, "floating IPs", "the project may allocate 3 more"),
        ("addresses_left", None, "floating IPs", "the project has no limit"),
        ("clock_skew", timedelta(minutes=-2), "clock", "120 s off the site's clock"),
        ("credential", Credential(), "credential", "does not expire"),
        ("public_keys", [("theirs", OTHER)], "SSH key at the site", "not at the site yet; a lease uploads it"),
        ("hosts", ["a", "b"], "reservations", "2 reservable nodes at CHI@UC"),
    ],
)
def test_a_passed_check_states_its_finding(site, key, reconciler, answer, value, check, text):
    site.answers[answer] = value
    texts = {one.name: one.text for one in doctor.check_site("chameleon", key, reconciler) if one.passed}
    assert texts[check] == text
    assert texts["local tools"] == "ssh, ssh-keygen"


def test_another_key_at_the_site_with_the_name_of_the_local_key_is_reported_with_its_fingerprint(
    site, key, failed_lines
):
    site.answers["public_keys"] = [(key.name, OTHER)]
    line = failed_lines()["SSH key at the site"]
    assert line.startswith(
        f"the key {key.name} at the site is {fingerprint(OTHER)}, but {key} is {fingerprint(key_pair(key).public)}; "
    )
    assert f"openstack keypair delete {key.name}" in line


def test_a_lease_created_with_another_key_is_named(site, reconciler, failed_lines):
    site.answers["public_keys"] = [(reconciler.journal.open_lease("llm_cc", "CHI@UC").tag, OTHER)]
    line = failed_lines()["SSH key at the site"]
    assert line.startswith(f"lease llm_cc was created with the key {fingerprint(OTHER)}, but ")
    assert "set --key to the key with which the lease was created" in line


def test_the_check_passes_if_the_site_has_the_local_key_under_any_name(site, key, reconciler):
    public = key_pair(key).public.rpartition(" ")[0]
    site.answers["public_keys"] = [
        ("laptop", public),
        (key.name, f"{public} other words"),
        ("theirs", OTHER),
        ("none", ""),
    ]
    texts = {one.name: one.text for one in doctor.check_site("chameleon", key, reconciler) if one.passed}
    assert texts["SSH key at the site"] == f"stored under the name laptop, {key.name}"


def test_the_fingerprint_of_a_key_is_the_one_that_ssh_keygen_shows(generated_key):
    shown = subprocess.run(["ssh-keygen", "-l", "-f", generated_key], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] == fingerprint(key_pair(generated_key).public)


def cloud(**clients):
    """Return a site without a connection, with these fake clients."""
    site = BareMetal.__new__(BareMetal)
    site.name = "CHI@UC"
    for name, client in clients.items():
        setattr(site, name, client)
    return site


def test_credentials_without_a_project_are_rejected():
    access = SimpleNamespace(project_id=None, username="cc")
    session = SimpleNamespace(auth=SimpleNamespace(get_access=lambda session: access))
    with pytest.raises(NoCredentials, match="no project is selected; set OS_PROJECT_NAME"):
        cloud(session=session).identity()


def test_the_recorded_identity_has_names_and_ids_and_no_secret():
    access = SimpleNamespace(username="cc", user_id="1", project_name="CHI-000001", project_id="p1")
    auth = SimpleNamespace(
        get_access=lambda session: access, auth_url="https://cc:secret@chi.uc.chameleoncloud.org:5000/v3"
    )
    found = cloud(session=SimpleNamespace(auth=auth), entry="uc").identity()
    assert found == IDENTITY


def test_the_quota_check_fails_if_the_quota_is_used_up():
    limits = SimpleNamespace(absolute=SimpleNamespace(instances_used=10, instances=10))
    sdk = SimpleNamespace(compute=SimpleNamespace(get_limits=lambda: limits))
    with pytest.raises(RequestRejected, match="10 of 10 servers; delete a server, or ask the site's help desk"):
        cloud(sdk=sdk).check_quota()


def test_a_missing_image_is_rejected():
    sdk = SimpleNamespace(image=SimpleNamespace(images=lambda name: []))
    with pytest.raises(
        RequestRejected, match=r"CC-Ubuntu24\.04-CUDA at CHI@UC does not exist; choose another with --image"
    ):
        cloud(sdk=sdk).image_id(DISK_IMAGE)


def images(*described):
    """Return a site with images of that name; described: id, visibility and status of each."""
    found = [SimpleNamespace(id=id, visibility=visibility, status=status) for id, visibility, status in described]
    return cloud(sdk=SimpleNamespace(image=SimpleNamespace(images=lambda name: found)))


PUBLIC, MINE = ("1", "public", "active"), ("2", "private", "active")


@pytest.mark.parametrize("found", [(PUBLIC,), (MINE, PUBLIC), (PUBLIC, ("3", "public", "deactivated"))])
def test_of_several_images_with_the_name_the_public_one_is_used(found):
    assert images(*found).image_id(DISK_IMAGE) == "1"


def test_a_private_image_is_used_if_there_is_no_public_one():
    assert images(MINE).image_id(DISK_IMAGE) == "2"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((MINE, ("4", "private", "active")), "2 images .* 2 .private, active., 4 .private, active.; delete or rename"),
        ((PUBLIC, ("3", "public", "active")), "2 images"),
        ((("3", "public", "deactivated"),), "is not active: 3 .public, deactivated."),
    ],
)
def test_an_image_name_that_is_ambiguous_or_has_only_inactive_images_is_rejected(found, message):
    with pytest.raises(RequestRejected, match=message):
        images(*found).image_id(DISK_IMAGE)


@pytest.mark.parametrize("missing", ["sharednet1", "public", "baremetal"])
def test_missing_requirements_of_a_boot_are_named(missing):
    def find(name):
        return None if name == missing else SimpleNamespace(id="1")

    sdk = SimpleNamespace(network=SimpleNamespace(find_network=find), compute=SimpleNamespace(find_flavor=find))
    with pytest.raises(RequestRejected, match=f"{missing} does not exist at CHI@UC"):
        cloud(sdk=sdk).check_boot_requirements()


@pytest.mark.parametrize(
    ("problem", "kind", "fix"),
    [
        (keystone_errors.Forbidden("not allowed"), RequestRejected, "ask the project's PI for the permission"),
        (keystone_errors.Unauthorized("no"), NoCredentials, "check OS_USERNAME and OS_PASSWORD"),
    ],
)
def test_a_forbidden_request_is_reported_with_its_fix(problem, kind, fix):
    with pytest.raises(kind, match=fix), translate_errors("blazar"):
        raise problem


def test_the_difference_to_the_clock_of_the_site_is_read_from_keystone():
    ahead = datetime.now(UTC) + timedelta(minutes=7)
    answer = SimpleNamespace(headers={"Date": f"{ahead:%a, %d %b %Y %H:%M:%S} GMT"})
    session = SimpleNamespace(get_endpoint=lambda **_: "http://keystone", get=lambda url, authenticated: answer)
    assert cloud(session=session).clock_skew() == pytest.approx(timedelta(minutes=7), abs=timedelta(seconds=30))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "possible: testbed lease --end-when-idle 30m"),
        (RequestRejected("blazar responds with 401"), "not possible: blazar responds with 401"),
    ],
)
def test_the_check_reports_whether_a_lease_can_end_itself_and_passes_in_both_cases(site, key, reconciler, answer, text):
    site.answers["try_lease_credential"] = answer
    (one,) = [one for one in doctor.check_site("chameleon", key, reconciler) if one.name == "end when idle"]
    assert (one.status, one.text) == ("ok", text)
