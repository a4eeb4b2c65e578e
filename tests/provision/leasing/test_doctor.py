"""Each check of the doctor, passed and failed: a failed one names its remedy. The site is a fake."""

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from keystoneauth1 import exceptions as keystone_errors

from provision.errors import NoCredentials, Refused, Unreachable
from provision.leasing import doctor
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Clock, Reconciler
from provision.models import Address
from provision.sites.openstack import Cloud, classified
from provision.ssh.login import fingerprint, key_pair

OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl cc@elsewhere"


class Site:
    """A site where all is well; a test gives one answer another value, or an error to raise."""

    name = "CHI@UC"

    def __init__(self) -> None:
        self.told = {
            "scope": "cc in project CHI-000001 at CHI@UC",
            "hosts": ["a node"],
            "image_id": "1234",
            "quota": "1 of 10 servers are used",
            "addresses": [],
            "addresses_left": 3,
            "public_keys": [],
            "service_units": "not told by the site's services",
            "skew": timedelta(seconds=1),
        }

    def __getattr__(self, name):
        def answer():
            if isinstance(self.told[name], Exception):
                raise self.told[name]
            return self.told[name]

        return answer


@pytest.fixture
def site(monkeypatch):
    there = Site()
    monkeypatch.setattr(doctor, "connect_to", lambda name: there)
    return there


@pytest.fixture
def reconciler(tmp_path):
    return Reconciler(Journal(tmp_path / "state"), Clock(), lambda line: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    file = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    return file


@pytest.fixture
def key(made, tmp_path):
    return shutil.copytree(made.parent, tmp_path / "ssh") / made.name


@pytest.fixture
def failed(site, key, reconciler):
    """The lines of the checks that fail, by the checks' names."""
    return lambda: {one.name: one.text for one in doctor.examine("chameleon", key, reconciler) if not one.passed}


def test_where_all_is_well_every_check_passes(site, key, reconciler, failed):
    assert failed() == {}
    names = [one.name for one in doctor.examine("chameleon", key, reconciler)]
    assert names == [
        *("local tools", "SSH key", "ledger", "account"),
        *("reservations", "image", "quota", "floating IPs", "SSH key at the site", "service units", "clock"),
    ]


def test_tools_that_are_missing_are_named_with_how_to_install_them(failed, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert failed() == {"local tools": "ssh, ssh-keygen missing; install OpenSSH's client (apt install openssh-client)"}


def test_a_key_that_is_missing_is_to_be_made(key, failed):
    key.unlink()
    remedy = f"SSH key {key} is not there; make one: ssh-keygen -t ed25519 -f {key}"
    assert failed() == {"SSH key": remedy, "SSH key at the site": remedy}


def test_a_key_that_others_can_read_is_to_be_closed(key, failed):
    key.chmod(0o644)
    assert failed() == {"SSH key": f"{key} can be read by others; chmod 600 {key}"}


def test_a_public_key_that_is_none_is_said(key, failed):
    key.with_suffix(".pub").write_text("ssh-ed25519 A")
    assert failed() == {"SSH key at the site": "'ssh-ed25519 A' is no public SSH key; make one: ssh-keygen -t ed25519"}


def test_a_ledger_of_another_version_is_to_be_moved_away(reconciler, failed):
    reconciler.journal.folder.mkdir()
    (reconciler.journal.folder / "ledger.jsonl").write_text(json.dumps({"version": 9}) + "\n")
    assert "move the file away" in failed()["ledger"]


def test_without_an_account_the_site_is_not_asked(site, key, reconciler, failed):
    site.told["scope"] = NoCredentials("credentials: no account; set OS_* variables")
    assert failed() == {"account": "credentials: no account; set OS_* variables"}
    assert doctor.examine("chameleon", key, reconciler)[-1].name == "account"


@pytest.mark.parametrize(
    ("answer", "value", "check", "remedy"),
    [
        ("hosts", Unreachable("blazar does not answer"), "reservations", "try again later, and look for outages"),
        ("image_id", Unreachable("glance does not answer"), "image", "try again later, and look for outages"),
        ("quota", Refused("10 of 10 servers; delete one"), "quota", "delete one"),
        ("addresses_left", 0, "floating IPs", "release one, or ask the site's help desk"),
        ("skew", timedelta(minutes=-5), "clock", "300 s off the site's; set it (timedatectl set-ntp true)"),
    ],
)
def test_what_is_wrong_at_the_site_is_told_with_its_remedy(site, failed, answer, value, check, remedy):
    site.told[answer] = value
    found = failed()
    assert list(found) == [check]
    assert remedy in found[check]


def test_a_free_address_of_the_project_is_enough(site, failed):
    site.told |= {"addresses": [Address("1", "192.0.2.1")], "addresses_left": 0}
    assert failed() == {}


def test_a_key_of_the_files_name_that_is_another_is_told_by_its_fingerprint(site, key, failed):
    site.told["public_keys"] = [(key.name, OTHER)]
    line = failed()["SSH key at the site"]
    assert line.startswith(
        f"{key.name} is {fingerprint(OTHER)} there, and {key} is {fingerprint(key_pair(key).public)}; "
    )
    assert f"openstack keypair delete {key.name}" in line


def test_a_lease_that_was_made_with_another_key_is_named(site, reconciler, failed):
    site.told["public_keys"] = [(reconciler.journal.open("llm_cc", "CHI@UC").tag, OTHER)]
    line = failed()["SSH key at the site"]
    assert line.startswith(f"lease llm_cc was made with {fingerprint(OTHER)}, and ")
    assert "name the key that it was made with by --key" in line


def test_the_same_key_under_any_name_passes_and_is_named(site, key, reconciler):
    public = key_pair(key).public.rpartition(" ")[0]
    site.told["public_keys"] = [
        ("laptop", public),
        (key.name, f"{public} other words"),
        ("theirs", OTHER),
        ("none", ""),
    ]
    texts = {one.name: one.text for one in doctor.examine("chameleon", key, reconciler) if one.passed}
    assert texts["SSH key at the site"] == f"at the site as laptop, {key.name}"


def test_a_fingerprint_is_what_ssh_keygen_shows(made):
    shown = subprocess.run(["ssh-keygen", "-l", "-f", made], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] == fingerprint(key_pair(made).public)


def cloud(**answers):
    """A Cloud without a connection."""
    made = Cloud.__new__(Cloud)
    made.name = "CHI@UC"
    for name, value in answers.items():
        setattr(made, name, value)
    return made


def test_credentials_that_choose_no_project_are_told_how_to():
    access = SimpleNamespace(project_name=None, username="cc")
    session = SimpleNamespace(auth=SimpleNamespace(get_access=lambda session: access))
    with pytest.raises(NoCredentials, match="they choose no project; set OS_PROJECT_NAME"):
        cloud(session=session).scope()


def test_a_full_quota_is_told_with_what_to_do():
    limits = SimpleNamespace(absolute=SimpleNamespace(instances_used=10, instances=10))
    sdk = SimpleNamespace(compute=SimpleNamespace(get_limits=lambda: limits))
    with pytest.raises(Refused, match="10 of 10 servers; delete one, or ask the site's help desk"):
        cloud(sdk=sdk).quota()


def test_an_image_that_is_not_there_is_told_with_whom_to_ask():
    sdk = SimpleNamespace(image=SimpleNamespace(find_image=lambda name: None))
    with pytest.raises(Refused, match=r"CC-Ubuntu24\.04-CUDA is not at CHI@UC; ask the site's help desk"):
        cloud(sdk=sdk).image_id()


@pytest.mark.parametrize(
    ("problem", "kind", "remedy"),
    [
        (keystone_errors.Forbidden("not allowed"), Refused, "ask the project's PI for the right"),
        (keystone_errors.Unauthorized("no"), NoCredentials, "check OS_USERNAME and OS_PASSWORD"),
    ],
)
def test_what_a_service_forbids_is_told_with_its_remedy(problem, kind, remedy):
    with pytest.raises(kind, match=remedy), classified("blazar"):
        raise problem


def test_the_site_clock_is_read_from_keystone():
    ahead = datetime.now(UTC) + timedelta(minutes=7)
    told = SimpleNamespace(headers={"Date": f"{ahead:%a, %d %b %Y %H:%M:%S} GMT"})
    session = SimpleNamespace(get_endpoint=lambda **_: "http://keystone", get=lambda url, authenticated: told)
    assert cloud(session=session).skew() == pytest.approx(timedelta(minutes=7), abs=timedelta(seconds=30))
