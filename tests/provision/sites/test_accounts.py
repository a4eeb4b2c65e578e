"""Which account is used: the files of a user, read by the real openstacksdk, without services."""

import json
import os

import pytest

from provision.errors import NoCredentials
from provision.sites.accounts import account_regions, find_account


def cloud_entry(region="CHI@UC", kind="v3applicationcredential", **auth):
    given = {"application_credential_id": "a", "application_credential_secret": "secret", **auth}
    return {"region_name": region, "auth_type": kind, "auth": {"auth_url": "http://keystone/v3", **given}}


@pytest.fixture
def write_clouds(tmp_path, monkeypatch):
    """Write a clouds.yaml; no OS_* variable is set."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))

    def write(**entries):
        (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": entries}))

    write()
    return write


def test_if_only_one_entry_of_clouds_yaml_is_for_a_region_it_is_used(write_clouds):
    write_clouds(
        uc=cloud_entry(), tacc=cloud_entry("KVM@TACC"), none={"auth": {"auth_url": "http://keystone", "username": "cc"}}
    )
    assert find_account("CHI@").name == "uc"
    assert account_regions() == ["CHI@UC", "KVM@TACC"]


def test_if_several_entries_of_clouds_yaml_are_for_a_region_the_user_must_choose(write_clouds):
    write_clouds(uc_course=cloud_entry(), uc_research=cloud_entry())
    with pytest.raises(NoCredentials) as several:
        find_account("CHI@")
    assert str(several.value) == (
        "credentials: 2 accounts for a region CHI@...: uc_course (CHI@UC), uc_research (CHI@UC); "
        "choose one: testbed --cloud uc_course, or OS_CLOUD"
    )


@pytest.mark.parametrize("name", ["uc_course", "uc_research"])
def test_the_entry_that_os_cloud_names_is_used_even_with_a_sourced_rc_file(write_clouds, monkeypatch, name, recwarn):
    write_clouds(uc_course=cloud_entry(), uc_research=cloud_entry())
    monkeypatch.setenv("OS_CLOUD", name)
    assert find_account("CHI@").name == name
    for variable, value in {"AUTH_URL": "http://k/v3", "USERNAME": "cc", "REGION_NAME": "CHI@UC"}.items():
        monkeypatch.setenv(f"OS_{variable}", value)
    assert find_account("CHI@").name == name
    assert list(recwarn) == []


def test_the_error_for_a_misspelled_entry_in_os_cloud_lists_the_existing_entries(write_clouds, monkeypatch):
    write_clouds(uc=cloud_entry())
    monkeypatch.setenv("OS_CLOUD", "cu")
    with pytest.raises(NoCredentials, match=r"OS_CLOUD 'cu' is not an entry of clouds\.yaml; allowed: uc"):
        find_account("CHI@")


def test_an_entry_for_another_region_is_rejected(write_clouds, monkeypatch):
    write_clouds(uc=cloud_entry(), kvm=cloud_entry("KVM@TACC"))
    monkeypatch.setenv("OS_CLOUD", "kvm")
    with pytest.raises(NoCredentials, match=r"OS_CLOUD kvm has the region KVM@TACC; needed: a region CHI@\.\.\."):
        find_account("CHI@")
    assert account_regions() == ["KVM@TACC"]


def test_the_account_of_a_sourced_rc_file_is_preferred_to_entries_of_clouds_yaml(write_clouds, monkeypatch):
    write_clouds(uc_course=cloud_entry(), uc_research=cloud_entry())
    for variable, value in {
        "AUTH_URL": "http://k/v3",
        "USERNAME": "cc",
        "PASSWORD": "p",
        "REGION_NAME": "CHI@UC",
    }.items():
        monkeypatch.setenv(f"OS_{variable}", value)
    assert find_account("CHI@", "uc_course").name == "envvars"


def test_a_preferred_entry_is_used_only_if_several_entries_are_for_the_region(write_clouds, monkeypatch):
    write_clouds(uc_course=cloud_entry(), uc_research=cloud_entry(), kvm=cloud_entry("KVM@TACC"))
    assert find_account("CHI@", "uc_research").name == "uc_research"
    assert find_account("KVM@", "uc_research").name == "kvm"
    monkeypatch.setenv("OS_CLOUD", "uc_course")
    assert find_account("CHI@", "uc_research").name == "uc_course"


def test_of_an_entry_with_several_regions_the_user_must_choose_a_region(write_clouds):
    write_clouds(all={**cloud_entry(), "region_name": None, "regions": ["CHI@UC", "CHI@TACC", "KVM@TACC"]})
    with pytest.raises(NoCredentials, match=r"all \(CHI@UC\), all \(CHI@TACC\); choose one with --site"):
        find_account("CHI@")
    assert (find_account("CHI@TACC").region_name, find_account("KVM@").region_name) == ("CHI@TACC", "KVM@TACC")


def test_a_missing_login_plugin_is_named_with_the_command_that_installs_it(write_clouds, capfd):
    write_clouds(chameleon=cloud_entry(kind="v3chameleonoidc"))
    with pytest.raises(NoCredentials, match=r"needs the login plugin v3chameleonoidc, .*pip install ccauth"):
        find_account("CHI@")
    assert capfd.readouterr().err == ""


def test_an_entry_whose_login_plugin_is_missing_still_counts_as_one_of_several(write_clouds, monkeypatch):
    write_clouds(
        uc=cloud_entry(), oidc=cloud_entry(kind="v3chameleonoidc"), elsewhere=cloud_entry("RegionOne", "v3unheardof")
    )
    with pytest.raises(NoCredentials, match=r"uc \(CHI@UC\), oidc \(CHI@UC\)"):
        find_account("CHI@")
    monkeypatch.setenv("OS_CLOUD", "uc")
    assert find_account("CHI@").name == "uc"


def test_an_incomplete_entry_is_named(write_clouds):
    write_clouds(
        uc={"region_name": "CHI@UC", "auth_type": "v3applicationcredential", "auth": {"auth_url": "http://k/v3"}}
    )
    with pytest.raises(NoCredentials) as incomplete:
        find_account("CHI@").get_session().auth  # noqa: B018
    assert "uc" in str(incomplete.value)


def test_no_error_message_has_a_secret(write_clouds):
    write_clouds(a=cloud_entry(), b=cloud_entry())
    with pytest.raises(NoCredentials) as several:
        find_account("CHI@")
    assert "secret" not in str(several.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variable", ["OS_CLIENT_CONFIG_FILE", "OS_CLIENT_SECURE_FILE", "OS_CLIENT_VENDOR_FILE"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_an_accounts_file_that_is_not_a_regular_file_is_rejected(tmp_path, monkeypatch, variable, kind):
    path = tmp_path / "clouds.yaml"
    {"fifo": os.mkfifo, "device": lambda one: one.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    monkeypatch.setenv(variable, str(path))
    with pytest.raises(NoCredentials, match=f"credentials: {path}: not a regular file"):
        account_regions()
