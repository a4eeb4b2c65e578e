"""The account of a lease, with real OpenStack services: two projects of a user, and limited credentials."""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import openstack
import pytest

from provision.leasing.release import EXTENSION_WINDOW
from provision.sites.base import connect_to
from tests.testbed.chameleon.conftest import left_at
from tests.testbed.openstack.settings import PORTS

OTHER_PROJECT = "CHI-000002"


@pytest.fixture(scope="module")
def other_project(local_openstack):
    """Create a second project with the same user as a member."""
    keystone: Any = openstack.connect(
        load_envvars=False,
        load_yaml_config=False,
        auth_url=f"http://{local_openstack.place.outer}:{PORTS['keystone']}/v3",
        username="admin",
        password=local_openstack.passwords["admin"],
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
        region_name="CHI@UC",
    ).identity
    domain = keystone.find_domain("chameleon").id
    project = keystone.create_project(name=OTHER_PROJECT, domain_id=domain)
    user = keystone.find_user("cc", domain_id=domain)
    for role in ("member", "reader"):
        keystone.assign_project_role_to_user(project, user, keystone.find_role(role))
    return OTHER_PROJECT


@pytest.fixture
def lease_flags(key):
    start = datetime.now(UTC).replace(second=0, microsecond=0) + EXTENSION_WINDOW / 2
    flags = ("--node-type", "gpu_a100_pcie", "--start", start.isoformat(), "--no-wait")
    return [*flags, "--key", str(key.file), "--yes"]


def test_a_lease_is_neither_reported_as_deleted_nor_released_with_an_account_of_another_project(
    testbed, site, lease_flags, other_project, monkeypatch
):
    assert testbed("lease", *lease_flags)[0] == 0
    (held,) = site.leases()
    monkeypatch.setenv("OS_PROJECT_NAME", other_project)
    made = "lease llm_cc was created by cc in project CHI-000001 at CHI@UC"
    current = "the current account is cc in project CHI-000002 at CHI@UC"
    for arguments in (
        ("status",),
        ("release", "--yes"),
        ("extend", "--yes"),
        ("lease", *lease_flags),
        ("lease", *lease_flags[:-4], "--key", lease_flags[-2], "--yes", "--start", "now", "--run", "true", "--wait"),
    ):
        code, out, err = testbed(*arguments)
        assert (code, out) == (2, "")
        assert f"{made}, but {current}" in err
    assert site.leases() == [held]
    monkeypatch.setenv("OS_PROJECT_NAME", "CHI-000001")
    assert "PENDING" in testbed("status")[1]
    assert testbed("release", "--yes")[0] == 0
    assert left_at(site) == []


@pytest.fixture
def limited_credential(site, monkeypatch, tmp_path):
    """Use an application credential with these limits."""

    def use_limited_credential(**limits):
        made = site.sdk.identity.create_application_credential(site.session.get_user_id(), name=tmp_path.name, **limits)
        auth = {
            "auth_url": os.environ["OS_AUTH_URL"],
            "application_credential_id": made.id,
            "application_credential_secret": made.secret,
        }
        clouds = {"uc": {"region_name": "CHI@UC", "auth_type": "v3applicationcredential", "auth": auth}}
        (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": clouds}))
        for name in [name for name in os.environ if name.startswith("OS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
        return made

    return use_limited_credential


def test_a_restricted_credential_is_reported_before_anything_is_leased(
    testbed, site, lease_flags, limited_credential, key
):
    limited_credential(unrestricted=False)
    code, out, err = testbed("doctor", "--site", "chameleon", "--key", str(key.file))
    assert (code, err) == (1, "")
    assert "FAIL  credential: credentials: this application credential is restricted" in out
    code, _, err = testbed("lease", *lease_flags)
    assert (code, "restricted" in err) == (2, True)
    assert left_at(site) == []
    assert testbed("status")[1] == "no active lease\n"


def test_a_credential_that_expires_before_the_lease_ends_is_reported_or_rejected(
    testbed, site, lease_flags, limited_credential
):
    ends = datetime.now(UTC) + timedelta(hours=4)
    limited_credential(unrestricted=True, expires_at=ends.strftime("%Y-%m-%dT%H:%M:%S.000000"))
    limits = connect_to("chameleon").credential()
    assert (limits.restricted, limits.expires_at.replace(microsecond=0)) == (False, ends.replace(microsecond=0))
    code, _, err = testbed("lease", *[flag for flag in lease_flags if flag != "--no-wait"], "--run", "true")
    assert (code, "before the lease ends" in err) == (2, True)
    assert left_at(site) == []
    code, _, err = testbed("lease", *lease_flags)
    assert (code, "the credential ends" in err) == (0, True)


def test_a_removed_credential_is_reported_as_removed(testbed, site, lease_flags, limited_credential):
    made = limited_credential(unrestricted=True)
    assert testbed("lease", *lease_flags)[0] == 0
    site.sdk.identity.delete_application_credential(site.session.get_user_id(), made.id)
    code, _, err = testbed("release", "--yes")
    assert code == 2
    assert "keystone rejects them" in err
    assert "log in again" in err
    assert len(site.leases()) == 1
