"""An OpenStack cloud on this machine: real keystone, placement, glance, neutron, nova and blazar on loopback addresses.

Fakes: the hardware (nova's fake driver), the network's data plane, volumes, the reference API. One nova
serves both regions; each region has its own Blazar. Databases are created and seeded once, cached, and copied for
each run to free addresses.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from experiments.system.files import cache_folder
from experiments.system.signals import die_with_parent
from tests.support.processes.waiting import wait_until_up
from tests.testbed.openstack import hardware, settings
from tests.testbed.openstack.environment import LOCK, environment, locked
from tests.testbed.openstack.service_proxy import ServiceProxy
from tests.testbed.openstack.settings import PORTS, SERVICES, Place

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SEEDED_PREFIX = "127.42"
PREFIXES = [f"127.{second}" for second in range(43, 250)]
KEPT_VARIABLES = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


class LocalOpenStack:
    """The running services; ``stop`` ends them."""

    def __init__(self, place: Place, passwords: dict[str, str], lock: IO[str] | None = None) -> None:
        """Create the services; ``lock`` reserves its addresses while it is open."""
        self.place, self.passwords, self._lock = place, passwords, lock
        self._python = environment() / "bin" / "python"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.proxies: dict[str, ServiceProxy] = {}

    def start(self, services: tuple[str, ...] = SERVICES) -> None:
        for service in services:
            self._running[service] = self._launch(service)
        for service in services:
            self._wait_for(service)
            outer, inner = ((address, PORTS[service]) for address in (self.place.outer, self.place.inner))
            self.proxies[service] = ServiceProxy(outer, inner)

    def stop(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        if self._lock:
            self._lock.close()

    def environment(self, region: str = hardware.BARE_METAL, user: str = "cc") -> dict[str, str]:
        """Return the variables of Chameleon's RC file for a region and a user of seed.USERS."""
        return {
            "OS_AUTH_TYPE": "v3password",
            "OS_AUTH_URL": f"http://{self.place.outer}:{PORTS['keystone']}/v3",
            "OS_USERNAME": user,
            "OS_PASSWORD": self.passwords["user"],
            "OS_PROJECT_NAME": "CHI-000001",
            "OS_USER_DOMAIN_NAME": "chameleon",
            "OS_PROJECT_DOMAIN_NAME": "chameleon",
            "OS_REGION_NAME": region,
            "OS_INTERFACE": "public",
            "CHI_RESOURCE_API_URL": f"http://{self.place.outer}:{PORTS['refapi']}",
        }

    def repair(self) -> None:
        """End all faults: services answer, nodes boot, clocks agree."""
        for proxy in self.proxies.values():
            proxy.repair()
        for knob in (
            "nova/behavior.json",
            "refapi/answer.json",
            "volumes/stuck",
            *(f"{blazar}/clock" for blazar in settings.POOLS),
        ):
            (self.place.folder / knob).unlink(missing_ok=True)

    def set_boot_behavior(self, **nodes: dict[str, object]) -> None:
        """Set how nodes boot: {"seconds": 3}, or {"fail": "why"}; by the node's name with _ in place of -.

        ``hypervisor`` names the hypervisor of the virtual machines.
        """
        uids = {machine.name.replace("-", "_"): machine.uid for machine in hardware.MACHINES}
        uids["hypervisor"] = hardware.HYPERVISOR
        behavior = {uids[name]: action for name, action in nodes.items()}
        _write_whole(self.place.folder / "nova" / "behavior.json", json.dumps(behavior))

    def replace_reference_api_responses(self, **answer: object) -> None:
        """Replace every answer of the reference API; see reference_api.py."""
        _write_whole(self.place.folder / "refapi" / "answer.json", json.dumps(answer))

    def move_clock(self, ahead: datetime.timedelta) -> None:
        """Set the clocks of the reservation services ahead of those of the other services."""
        for blazar in settings.POOLS:
            _write_whole(self.place.folder / blazar / "clock", str(ahead.total_seconds()))

    def fail_to_delete_a_volume(self) -> None:
        """Let the next deletion of a volume fail."""
        _write_whole(self.place.folder / "volumes" / "stuck", "")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of this folder's programs in the services' environment."""
        command = [str(self._python), str(HERE / program), *arguments]
        done = subprocess.run(command, env=_quiet_environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")

    def _launch(self, service: str) -> subprocess.Popen[bytes]:
        where = [str(self.place.folder), self.place.inner, str(PORTS[service])]
        with (self.place.folder / "log" / f"{service}.out").open("a") as log:
            return subprocess.Popen(
                [self._python, HERE / "services.py", service, *where],
                env=_quiet_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def _wait_for(self, service: str) -> None:
        url = f"http://{self.place.inner}:{PORTS[service]}/"
        log = self.place.folder / "log" / f"{service}.out"
        wait_until_up(service, self._running[service], log, lambda: _service_answers(url))


def _service_answers(url: str) -> bool:
    """Return whether a service answers, with whatever status."""
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def open_local_openstack(folder: Path) -> LocalOpenStack:
    """Start the services in an empty folder, with a copy of the seeded data in the cache."""
    golden = seeded()
    prefix, lock = _free_prefix()
    place = Place(folder, prefix)
    stored = json.loads((golden / "box.json").read_text())
    for part in ("db", "keystone", "images", "nova/state"):
        shutil.copytree(golden / part, folder / part)
    for database in (folder / "db").glob("*.db"):
        _replace(database, {f"{SEEDED_PREFIX}.": f"{place.prefix}.", stored["folder"]: str(folder)})
    local_openstack = _prepared(place, stored["passwords"], lock)
    local_openstack.start()
    return local_openstack


def seeded() -> Path:
    """Return the cached folder of databases with the users, images and hosts that an operator sets up.

    Create the folder if it is missing.
    """
    sources = [
        LOCK,
        *(HERE / f"{name}.py" for name in ("databases", "hardware", "fake_hardware", "seed", "services", "settings")),
        HERE / "shortcuts.py",
    ]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = cache_folder() / f"openstack-seeded-{digest}"
    with locked(folder):
        if not (folder / ".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _seed(folder)
    return folder


def _seed(folder: Path) -> None:
    print(f"seeding the databases of the OpenStack services in {folder}", file=sys.__stderr__, flush=True)
    folder.mkdir(parents=True)
    local_openstack = _prepared(
        Place(folder, SEEDED_PREFIX), {name: secrets.token_hex(8) for name in ("svc", "admin", "user")}
    )
    keystone_urls = [
        f"http://{address}:{PORTS['keystone']}/v3"
        for address in (local_openstack.place.outer, local_openstack.place.inner)
    ]
    make = [str(folder), local_openstack.passwords["admin"], hardware.BARE_METAL, *keystone_urls]
    with ThreadPoolExecutor(2) as pool:
        projects = ("nova", "keystone", "neutron", "glance", *settings.POOLS)
        list(pool.map(lambda project: local_openstack.run("databases.py", project, *make), projects))
    for database in (folder / "db").glob("*.db"):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    with contextlib.ExitStack() as last:
        last.callback(local_openstack.stop)
        local_openstack.start(("refapi", "keystone"))
        local_openstack.run("seed.py", "identity", str(folder))
        local_openstack.start(tuple(service for service in SERVICES if service not in ("refapi", "keystone")))
        local_openstack.run("seed.py", "cloud", str(folder))
    (folder / ".made").touch()


def _prepared(place: Place, passwords: dict[str, str], lock: IO[str] | None = None) -> LocalOpenStack:
    """Return the services with their files: configuration, nodes, and the input of seed.py."""
    local_openstack = LocalOpenStack(place, passwords, lock)
    settings.write(place, passwords["svc"], environment())
    (place.folder / "nodes.json").write_text(json.dumps(hardware.NODES))
    stored = {"prefix": place.prefix, "passwords": passwords, "folder": str(place.folder)}
    (place.folder / "box.json").write_text(json.dumps(stored))
    return local_openstack


def _free_prefix() -> tuple[str, IO[str]]:
    """Return the first unused prefix, on whose addresses nobody listens, and the lock that reserves it."""
    for prefix in PREFIXES:
        lock = Path(tempfile.gettempdir(), f"testbed-{prefix}.lock").open("w")  # noqa: SIM115 - the object keeps it open
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind((Place(Path(), prefix).outer, PORTS["keystone"]))
            return prefix, lock
        lock.close()
    raise RuntimeError("no free loopback address")


def _replace(database: Path, texts: dict[str, str]) -> None:
    """Replace strings in every column of every table."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            for column in columns:
                for old, new in texts.items():
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '
                        f'WHERE typeof("{column}") = \'text\' AND instr("{column}", ?)',
                        (old, new, old),
                    )
        connection.commit()


def _quiet_environment() -> dict[str, str]:
    """Return the variables of a service: few, because each of its requests to another looks through all for a proxy."""
    mine = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**mine, "PYTHONPATH": str(ROOT), "OS_CLIENT_CONFIG_FILE": os.devnull}


def _write_whole(file: Path, text: str) -> None:
    """Write atomically."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
