"""The user's accounts at OpenStack sites: entries of clouds.yaml, and the account that OS_* variables describe."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keystoneauth1 import exceptions as keystone_errors
from keystoneauth1 import loading
from openstack import config
from openstack import exceptions as sdk_errors
from openstack.config import loader
from openstack.config.cloud_region import CloudRegion

from provision.errors import NoCredentials
from provision.sites.faults import first_line

CLOUD_VARIABLE = "OS_CLOUD"
"""The variable that names the entry to use, as in every OpenStack client."""
VARIABLES_ENTRY = "envvars"
"""The name that openstacksdk gives to the account that the OS_* variables describe."""
FILE_VARIABLES = ("OS_CLIENT_CONFIG_FILE", "OS_CLIENT_SECURE_FILE", "OS_CLIENT_VENDOR_FILE")
"""Variables that name files to read in place of clouds.yaml, secure.yaml and clouds-public.yaml."""
PLUGIN_FIXES = {
    "v3chameleonoidc": "pip install ccauth (github.com/ChameleonCloud/ccauth), or use cc-login's credential"
}
"""How to install the login plugins that Chameleon's tools write into clouds.yaml. Keys: names of plugins."""
ACCOUNT_FIX = "source the site's RC file to set OS_* variables, or write a clouds.yaml with region_name"


@dataclass(frozen=True)
class _Entry:
    """An account in one region. cloud: None if the login plugin is missing, or a setting that the plugin needs."""

    name: str
    region: str
    auth_type: str
    cloud: CloudRegion | None


def find_account(region_prefix: str, preferred: str = "") -> CloudRegion:
    """Return the account for a region with this prefix.

    The account is the entry that OS_CLOUD names, else the OS_* variables, else the only entry for such a region, else
    the entry ``preferred``. Raises NoCredentials if there is no account, if the choice is ambiguous, or if a login
    plugin is missing.
    """
    entries, wanted = _entries(), os.environ.get(CLOUD_VARIABLE, "")
    if wanted and wanted not in {entry.name for entry in entries}:
        names = ", ".join(dict.fromkeys(entry.name for entry in entries)) or "none"
        raise NoCredentials(
            f"credentials: {CLOUD_VARIABLE} {wanted!r} is not an entry of clouds.yaml; allowed: {names}"
        )
    fitting = [entry for entry in entries if entry.region.startswith(region_prefix)]
    chosen = _entries_named(fitting, wanted) if wanted else _implied_entries(fitting, preferred)
    if not chosen:
        raise NoCredentials(_no_account_message(region_prefix, entries, wanted))
    if len(chosen) > 1:
        raise NoCredentials(_several_accounts_message(region_prefix, chosen))
    return _usable_region(chosen[0])


def account_regions() -> list[str]:
    """Return the regions of the configured accounts; with OS_CLOUD, only the regions of its entry."""
    wanted = os.environ.get(CLOUD_VARIABLE, "")
    return sorted({entry.region for entry in _entries() if entry.region and wanted in ("", entry.name)})


def _entries() -> list[_Entry]:
    _reject_special_files()
    try:
        with warnings.catch_warnings():
            # If other OS_* variables are set, openstacksdk also treats OS_CLOUD as a vendor profile, and warns.
            warnings.simplefilter("ignore")
            settings = config.OpenStackConfig(load_envvars=True)
            clouds = settings.get_all()
    except (sdk_errors.ConfigException, keystone_errors.ClientException) as problem:
        raise NoCredentials(f"credentials: {first_line(problem)}") from None
    usable = [_Entry(str(cloud.name), cloud.region_name or "", "", cloud) for cloud in clouds]
    names = {entry.name for entry in usable}
    return usable + [
        _Entry(name, region, str(raw.get("auth_type")), None)
        for name, raw in settings.cloud_config["clouds"].items()
        if name not in names
        for region in _region_names(raw)
    ]


def _reject_special_files() -> None:
    """Raise NoCredentials for a configuration file that is a FIFO or a device: reading it might never end."""
    named = [os.environ.get(variable) for variable in FILE_VARIABLES]
    for name in (*filter(None, named), *loader.CONFIG_FILES, *loader.SECURE_FILES, *loader.VENDOR_FILES):
        if os.path.exists(name) and not os.path.isfile(name):
            raise NoCredentials(f"credentials: {name}: not a regular file; replace it by one, or remove it")


def _region_names(raw: dict[str, Any]) -> list[str]:
    """Return the names of an entry's regions. raw: the entry as in clouds.yaml."""
    listed = raw.get("regions") or [raw.get("region_name") or ""]
    return [str(region["name"] if isinstance(region, dict) else region) for region in listed]


def _entries_named(entries: Sequence[_Entry], name: str) -> list[_Entry]:
    return [entry for entry in entries if entry.name == name]


def _implied_entries(entries: Sequence[_Entry], preferred: str) -> list[_Entry]:
    """Return the entry to use if the user names none; several entries if the choice is ambiguous."""
    return (
        _entries_named(entries, VARIABLES_ENTRY)
        or (len(entries) > 1 and _entries_named(entries, preferred))
        or list(entries)
    )


def _usable_region(entry: _Entry) -> CloudRegion:
    """Return the entry's region. Raises NoCredentials if the entry's login plugin or one of its settings is missing."""
    if entry.cloud is not None:
        return entry.cloud
    if entry.auth_type in loading.get_available_plugin_names():
        raise NoCredentials(
            f"credentials: entry {entry.name} of clouds.yaml lacks a setting "
            f"that the login plugin {entry.auth_type} needs; see the plugin's documentation"
        )
    fix = PLUGIN_FIXES.get(entry.auth_type, "install the package that has it")
    raise NoCredentials(
        f"credentials: entry {entry.name} of clouds.yaml needs the login plugin {entry.auth_type}, "
        f"which is not installed in this environment; {fix}"
    )


def _no_account_message(region_prefix: str, entries: Sequence[_Entry], wanted: str) -> str:
    if wanted:
        found = ", ".join(entry.region or "no region" for entry in _entries_named(entries, wanted))
        return (
            f"credentials: {CLOUD_VARIABLE} {wanted} has the region {found}; needed: a region {region_prefix}...; "
            "name another entry of clouds.yaml"
        )
    found = ", ".join(sorted({entry.region or "no region" for entry in entries})) or "none"
    return f"credentials: no account for a region {region_prefix}...; found: {found}; {ACCOUNT_FIX}"


def _several_accounts_message(region_prefix: str, entries: Sequence[_Entry]) -> str:
    found = ", ".join(f"{entry.name} ({entry.region})" for entry in entries)
    several = len({entry.name for entry in entries}) > 1
    fix = f"choose one: testbed --cloud {entries[0].name}, or {CLOUD_VARIABLE}" if several else "choose one with --site"
    return f"credentials: {len(entries)} accounts for a region {region_prefix}...: {found}; {fix}"
