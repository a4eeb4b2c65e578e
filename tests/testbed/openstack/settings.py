"""The configuration files of the services, for one folder and one pair of addresses.

Services listen on ``inner`` and use it among themselves. Clients use ``outer``, a proxy that tests can give a fault.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.openstack import hardware

PORTS = {
    "refapi": 8080,
    "keystone": 5000,
    "placement": 8778,
    "glance": 9292,
    "neutron": 9696,
    "nova": 8774,
    "blazar": 1234,
    "blazar_kvm": 1235,
    "volumes": 8776,
}
POOLS = {"blazar": "freepool", "blazar_kvm": "freepool_kvm"}
"""The reservation services, one a site, with the aggregate of their reservable hosts."""
SERVICES = tuple(PORTS)
PLUGINS = {
    "blazar": ("physical.host.plugin",),
    "blazar_kvm": ("physical.host.plugin", "flavor.instance.plugin"),
}
CLEANING_MINUTES = 5
FLOATING_IPS = range(10, 20)
"""The last numbers of the public network's addresses; its router takes one."""
UNCHECKED_RESPONSES: dict[str, object] = {"response_validation": "ignore"}
"""By default, keystone and nova compare each of their responses with a schema, and log the differences."""

Ini = dict[str, dict[str, object]]


@dataclass(frozen=True)
class Place:
    """The folder of a local OpenStack cloud, and the first two numbers of its loopback addresses."""

    folder: Path
    prefix: str

    @property
    def outer(self) -> str:
        return f"{self.prefix}.0.1"

    @property
    def inner(self) -> str:
        return f"{self.prefix}.0.2"

    @property
    def floating(self) -> str:
        """The first three numbers of the floating IPs, which are also loopback addresses."""
        return f"{self.prefix}.128"


def write(place: Place, password: str, programs: Path) -> None:
    """Write every service's files; programs: the environment whose etc/ has the paste files."""
    for name in ("log", "db", "lock", "images", "staging", "tasks", "nova/state", "neutron/state"):
        (place.folder / name).mkdir(parents=True, exist_ok=True)
    for service, files in _files(place, password).items():
        folder = place.folder / service
        folder.mkdir(exist_ok=True)
        for name, ini in files.items():
            _write_ini(folder / name, ini)
    for service, name in (("glance", "glance-api-paste.ini"), ("neutron", "api-paste.ini"), ("nova", "api-paste.ini")):
        shutil.copy(programs / "etc" / service / name, place.folder / service / name)
    for blazar in POOLS:
        _write_policy(place.folder / blazar / "policy.yaml")
    for path, data in hardware.reference_data(place.outer).items():
        file = place.folder / "refapi" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data))


def _files(place: Place, password: str) -> dict[str, dict[str, Ini]]:
    keystone = f"http://{place.inner}:{PORTS['keystone']}/v3"
    account = {
        "auth_url": keystone,
        "auth_type": "password",
        "username": "svc",
        "password": password,
        "project_name": "service",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "region_name": hardware.BARE_METAL,
        "valid_interfaces": "internal",
    }
    guarded: Ini = {
        "keystone_authtoken": {"www_authenticate_uri": keystone, "interface": "internal", **account},
        "oslo_concurrency": {"lock_path": place.folder / "lock"},
    }
    return {
        "keystone": {"keystone.conf": _keystone(place)},
        "placement": {"placement.conf": _placement(place) | guarded},
        "glance": {"glance-api.conf": _glance(place) | guarded},
        "neutron": {"neutron.conf": _neutron(place, account) | guarded},
        "nova": {"nova.conf": _nova(place, account) | guarded},
        **{blazar: {"blazar.conf": _with_access_rules(_blazar(place, password, blazar) | guarded)} for blazar in POOLS},
    }


def _with_access_rules(blazar: Ini) -> Ini:
    """Set Blazar's service type, without which Blazar rejects application credentials with access rules."""
    return blazar | {"keystone_authtoken": {**blazar["keystone_authtoken"], "service_type": "reservation"}}


def _keystone(place: Place) -> Ini:
    keys = place.folder / "keystone"
    return {
        "DEFAULT": _log(place, "keystone"),
        "database": _database(place, "keystone"),
        "fernet_tokens": {"key_repository": keys / "fernet"},
        "fernet_receipts": {"key_repository": keys / "fernet"},
        "credential": {"key_repository": keys / "cred"},
        "token": {"expiration": 86400},
        # Blazar creates a trust for every lease; since keystone 30 application credentials need permission for it
        "security_compliance": {"allow_insecure_application_credential_trust_escalation": True},
        "identity": {"password_hash_rounds": 4},
        "api": UNCHECKED_RESPONSES,
        "cache": {"enabled": True, "backend": "dogpile.cache.memory"},
    }


def _placement(place: Place) -> Ini:
    return {
        "DEFAULT": _log(place, "placement"),
        "placement_database": {**_database(place, "placement"), "sync_on_startup": True},
        "api": {"auth_strategy": "keystone"},
    }


def _glance(place: Place) -> Ini:
    return {
        "DEFAULT": {
            **_log(place, "glance"),
            "enabled_backends": "fs:file",
            "enabled_import_methods": "[]",
            "worker_self_reference_url": f"http://{place.inner}:{PORTS['glance']}",
        },
        "database": _database(place, "glance"),
        "glance_store": {"default_backend": "fs"},
        "fs": {"filesystem_store_datadir": place.folder / "images"},
        "os_glance_staging_store": {"filesystem_store_datadir": place.folder / "staging"},
        "os_glance_tasks_store": {"filesystem_store_datadir": place.folder / "tasks"},
        "paste_deploy": {"flavor": "keystone", "config_file": place.folder / "glance" / "glance-api-paste.ini"},
    }


def _neutron(place: Place, account: dict[str, str]) -> Ini:
    return {
        "DEFAULT": {
            **_log(place, "neutron"),
            "core_plugin": "ml2",
            "service_plugins": "router,tag,revisions",
            "transport_url": "fake://",
            "auth_strategy": "keystone",
            "api_paste_config": place.folder / "neutron" / "api-paste.ini",
            "state_path": place.folder / "neutron" / "state",
            "agent_down_time": 2_000_000,
            "notify_nova_on_port_status_changes": True,
            "notify_nova_on_port_data_changes": True,
            "send_events_interval": 1,
            "rpc_workers": 0,
        },
        "database": _database(place, "neutron"),
        "ml2": {
            "type_drivers": "flat,vlan",
            "project_network_types": "vlan",
            "mechanism_drivers": "openvswitch",
            "extension_drivers": "port_security",
        },
        "ml2_type_flat": {"flat_networks": "public,physnet1"},
        "ml2_type_vlan": {"network_vlan_ranges": "physnet1:100:200"},
        "securitygroup": {"enable_security_group": True},
        "nova": {**account, "endpoint_type": "internal"},
    }


def _nova(place: Place, account: dict[str, str]) -> Ini:
    return {
        "DEFAULT": {
            **_log(place, "nova"),
            "compute_driver": "pretend_ironic.Driver",
            "transport_url": "fake://",
            "host": "nova-control",
            "my_ip": place.inner,
            "state_path": place.folder / "nova" / "state",
            "report_interval": 60,
            "service_down_time": 31_536_000,
            "update_resources_interval": -1,
            "heal_instance_info_cache_interval": 0,
            "sync_power_state_interval": -1,
        },
        "api_database": _database(place, "nova_api"),
        "database": _database(place, "nova"),
        "api": {"auth_strategy": "keystone", **UNCHECKED_RESPONSES},
        "scheduler": {"discover_hosts_in_cells_interval": -1},
        "filter_scheduler": {
            "available_filters": [
                "nova.scheduler.filters.all_filters",
                "blazarnova.scheduler.filters.blazar_filter.BlazarFilter",
            ],
            "enabled_filters": "ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter,BlazarFilter",
        },
        "vnc": {"enabled": False},
        "quota": {"cores": -1},
        "glance": {"api_servers": f"http://{place.inner}:{PORTS['glance']}"},
        "placement": dict(account),
        "neutron": dict(account),
        "cinder": {"catalog_info": "volumev3::internalURL", "os_region_name": hardware.BARE_METAL},
        "service_user": {"send_service_user_token": True, **account},
    }


def _blazar(place: Place, password: str, service: str) -> Ini:
    return {
        "DEFAULT": {
            **_log(place, service),
            "transport_url": "fake://",
            # Blazar picks hosts without a lock; with one thread two simultaneous requests cannot get the same host
            "executor_thread_pool_size": 1,
            "cleaning_time": CLEANING_MINUTES,
            "host": place.inner,
            "os_auth_protocol": "http",
            "os_auth_host": place.inner,
            "os_auth_port": PORTS["keystone"],
            "os_auth_version": "v3",
            "os_region_name": hardware.BARE_METAL,
            "endpoint_type": "internal",
            "os_admin_username": "svc",
            "os_admin_password": password,
            "os_admin_project_name": "service",
            "os_admin_user_domain_name": "Default",
            "os_admin_project_domain_name": "Default",
            "identity_service": "identity",
        },
        "database": _database(place, service),
        "manager": {
            "plugins": ",".join(PLUGINS[service]),
            "minutes_before_end_lease": 0,
        },
        "nova": {"aggregate_freepool_name": POOLS[service], "endpoint_type": "internal"},
        "oslo_messaging_notifications": {"driver": "noop"},
        "oslo_policy": {"policy_file": place.folder / service / "policy.yaml"},
    }


def _write_policy(file: Path) -> None:
    """Let every user list the hosts, as on Chameleon; upstream allows only admins."""
    rights = ("get", "get_allocations", "get_resource_properties")
    file.write_text("".join(f'"blazar:oshosts:{right}": ""\n' for right in rights))


def _log(place: Place, service: str) -> dict[str, object]:
    return {"log_file": place.folder / "log" / f"{service}.log", "use_stderr": False}


def _database(place: Place, name: str) -> dict[str, object]:
    return {"connection": f"sqlite:///{place.folder}/db/{name}.db?timeout=60", "sqlite_synchronous": False}


def _write_ini(file: Path, ini: Ini) -> None:
    """Write oslo.config's dialect, which repeats an option for several values."""
    lines = []
    for section, options in ini.items():
        lines.append(f"[{section}]")
        for name, value in options.items():
            lines += [f"{name} = {one}" for one in (value if isinstance(value, list) else [value])]
    file.write_text("\n".join(lines) + "\n")
