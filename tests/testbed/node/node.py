"""A "bare-metal node" on this machine: Ubuntu under systemd-nspawn, with systemd, sshd, and an address of its own.

The kernel is this machine's, and GPUs are fakes (see gpus). Everything else is real, including reboots. A node ends
with the process that started it, even if that is killed; the remains (a folder, an empty cgroup, the bridge) are
removed by the next start of a node of the same name, and by its end.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from experiments.system.files import cache_folder
from experiments.system.signals import die_with_parent
from provision.errors import NotReached
from provision.ssh.login import USER, Login, try_login
from tests.support.processes.waiting import wait_until_up
from tests.testbed.node import gpus, network
from tests.testbed.node.image import NodeImage, copy_root

BOOT_LIMIT_S = 90
STOP_LIMIT_S = 15
REBOOTED = 133
TEST_NODE_VARIABLES = {
    "precheck_disk_gib": 12,
    "precheck_memory_gib": 4,
    "slurm_cgroup_plugin": "cgroup/v1",
    "download_pause_s": 0.1,
}
"""Variables of the roles for such a node: small images, this machine's cgroups, no pause before a second download."""
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CGROUPS = Path("/sys/fs/cgroup")
ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
SUPERVISOR = f'while "$@"; [ $? = {REBOOTED} ]; do :; done'


class Node:
    """A node with a name (unique on this machine) at an address of ``network.NETWORK``.

    authorized_key: text of the public key that may log in as ``cc``. cards: names of its fake GPUs. shared: files of
    this machine that the node reads under the same path, which saves sending them. A stopped node is deleted with
    everything on it except ``disks``: folders of this machine by their path on the node.
    """

    def __init__(
        self,
        name: str,
        address: str,
        image: NodeImage,
        authorized_key: str,
        cards: Sequence[str] = (),
        shared: Sequence[Path] = (),
        disks: Mapping[str, Path] | None = None,
    ) -> None:
        self.name, self.address, self._image = name, address, image
        self._cards, self._shared, self._disks = tuple(cards), tuple(shared), dict(disks or {})
        self._key = authorized_key.strip()
        self._folder = cache_folder() / "nodes" / name
        self.root = self._folder / "root"
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Boot a fresh node; wait while another process has one of this name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / "lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._clear()
        copy_root(self._image.root, self.root)
        self._write_node_files()
        for folder in self._disks.values():
            folder.mkdir(parents=True, exist_ok=True)
        network.create_network()
        self._process = subprocess.Popen(
            [*ISOLATED, "sh", "-c", SUPERVISOR, "-", *self._nspawn()],
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "console.log").open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
            preexec_fn=self._enter_cgroup,
        )

    def wait(self, login: Login) -> None:
        """Wait until the node answers SSH. Raises RuntimeError with the console's last lines if it does not."""

        def answers() -> bool:
            with suppress(NotReached):
                try_login(login)
                return True
            return False

        assert self._process
        wait_until_up(self.name, self._process, self._folder / "console.log", answers)

    def reboot(self) -> None:
        """Reboot; return when the old boot has ended, before the new one answers."""
        before = self._leader()
        self.run("systemctl", "reboot")
        ends = time.monotonic() + BOOT_LIMIT_S
        while self._leader() == before:
            assert time.monotonic() < ends, f"{self.name} does not shut down"
            time.sleep(0.05)

    def run(self, *command: str) -> str:
        """Run a command as root on the node, without SSH; return its output."""
        leader = self._leader()
        entered = ["nsenter", "--target", leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        done = subprocess.run([*entered, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"{command} on {self.name} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """Power the node off, and remove everything that it left."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._clear()
        network.remove_network()
        if self._lock:
            self._lock.close()

    def _nspawn(self) -> list[str]:
        devices = [f"/dev/null:{path}" for path in gpus.device_nodes(len(self._cards))]
        options = {
            "directory": self.root,
            "machine": self.name,
            "network-bridge": network.BRIDGE,
            "register": "no",
            "private-users": "no",
            "resolv-conf": "off",
            "timezone": "off",
            "link-journal": "no",
            "console": "pipe",
            "capability": "all",
            "system-call-filter": "add_key keyctl bpf",
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        bound = [f"--bind={path}" for path in ("/dev/fuse", *devices)] + [f"--bind-ro={path}" for path in self._shared]
        bound += [f"--bind={folder}:{where}" for where, folder in self._disks.items()]
        return ["systemd-nspawn", "--quiet", "--boot", "--keep-unit", *flags, *bound]

    def _write_node_files(self) -> None:
        """Write the files that differ between nodes."""
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        (etc / "resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        shutil.copy(CA_BUNDLE, etc / "ssl/certs/ca-certificates.crt")
        (etc / "systemd/network/10-node.network").write_text(
            f"[Match]\nName=host0\n[Link]\nMTUBytes={network.mtu()}\n"
            f"[Network]\nAddress={self.address}/24\nGateway={network.GATEWAY}\nIPv6AcceptRA=no\n"
        )
        (etc / "systemd/system.conf.d").mkdir(exist_ok=True)
        (etc / "systemd/system.conf.d/10-node.conf").write_text(f"[Manager]\nDefaultTimeoutStopSec={STOP_LIMIT_S}\n")
        host_key = etc / "ssh/ssh_host_ed25519_key"
        host_key.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
        home = self.root / "home" / USER
        authorized = home / ".ssh/authorized_keys"
        authorized.write_text(f"{self._key}\n")
        os.chown(authorized, home.stat().st_uid, home.stat().st_gid)
        if self._cards:
            gpus.install_fake_gpus(self.root, self._cards)

    def _enter_cgroup(self) -> None:
        die_with_parent()
        group = self._cgroup()
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))

    def _cgroup(self) -> Path:
        """Return the node's own cgroup, which ends without affecting other nodes'."""
        unified = CGROUPS / "unified"
        return (unified if unified.is_dir() else CGROUPS) / f"testbed-{self.name}"

    def _leader(self) -> str:
        """Return the process id of the node's init on this machine; '' between two boots."""
        processes = self._cgroup() / "payload/init.scope/cgroup.procs"
        return next(iter(processes.read_text().split()), "") if processes.exists() else ""

    def _clear(self) -> None:
        """Remove what this node, or a killed one of the same name, left behind."""
        for group in (self._cgroup(), CGROUPS / "systemd" / self._cgroup().name):
            for process in {pid for file in group.rglob("cgroup.procs") for pid in file.read_text().split()}:
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            for folder in sorted([group, *(path for path in group.rglob("*") if path.is_dir())], reverse=True):
                _remove_cgroup(folder)
        shutil.rmtree(self.root, ignore_errors=True)


def _remove_cgroup(folder: Path) -> None:
    ends = time.monotonic() + BOOT_LIMIT_S
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)
