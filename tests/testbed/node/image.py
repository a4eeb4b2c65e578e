"""The root file system of a node: Ubuntu from its repository, created once and cached.

The image has firewalld with its default settings, like Chameleon's images: only SSH is admitted.

Needs root, mmdebstrap and gpg. Debian has no keyring of Ubuntu: it is downloaded from the repository, and only the key
with the pinned fingerprint is used.
"""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.system.files import cache_folder
from provision.ssh.login import USER
from tests.testbed.openstack.environment import locked

SUITE = "noble"
ARCHIVE_KEY = "F6ECB3762474EDA9D21B7022871920D1991BC93C"
PACKAGES = (
    *("apt", "ubuntu-keyring", "systemd-sysv", "dbus", "udev", "kmod", "procps", "sudo", "ca-certificates"),
    *("openssh-server", "iproute2", "iptables", "python3", "python3-apt", "rsync", "firewalld"),
)
QUIET_APT = 'Acquire::Languages "none";\nAcquire::Check-Date "false";\nAcquire::Check-Valid-Until "false";\n'
IDLE = ("systemd-networkd-wait-online", "apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer", "motd-news.timer")
SETUP = f"""
useradd --create-home --shell /bin/bash --groups sudo {USER}
install -d -m 700 -o {USER} -g {USER} /home/{USER}/.ssh
rm -f /etc/ssh/ssh_host_* /etc/resolv.conf
: > /etc/machine-id
systemctl --quiet enable systemd-networkd
systemctl --quiet mask {" ".join(IDLE)}
touch -d @0 /var/lib/apt/lists
"""
UNNAMED_KEYRING = ("--skip=check/signed-by",)
# The last line of SETUP dates the package lists back, so that no program takes them for fresh ones.

Say = Callable[[str], None]


@dataclass(frozen=True)
class NodeImage:
    """A folder with a root file system, which is copied and never changed."""

    root: Path

    @classmethod
    def make(cls, say: Say) -> "NodeImage":
        """Return the image of this recipe, created now if it is not cached (some minutes of download)."""
        recipe = hashlib.sha256(repr((SUITE, PACKAGES, QUIET_APT, SETUP)).encode()).hexdigest()
        root = cache_folder() / f"node-{SUITE}-{recipe[:12]}"
        with locked(root):
            if not root.exists():
                say(f"creating the root file system of nodes in {root}")
                _make(root)
        return cls(root)


def _make(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        folder, keyring = Path(scratch) / "root", Path(scratch) / "keyring.gpg"
        keyring.write_bytes(archive_key(Path(scratch)))
        bootstrap(SUITE, folder, PACKAGES, *UNNAMED_KEYRING, f"--keyring={keyring}", "--components=main,universe")
        (folder / "etc/apt/apt.conf.d/90node").write_text(QUIET_APT)
        sudo = folder / f"etc/sudoers.d/{USER}"
        sudo.write_text(f"{USER} ALL=(ALL) NOPASSWD:ALL\n")
        sudo.chmod(0o440)
        _run("chroot", folder, "sh", "-ec", SETUP)
        folder.rename(root)


def bootstrap(suite: str, target: Path, packages: tuple[str, ...], *options: str) -> None:
    """Create a minimal root file system with ``packages``: a folder, or an archive if ``target`` ends in .tar."""
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", *options, suite, target)


def archive_key(scratch: Path) -> bytes:
    """Return the public key that signs Ubuntu's repository, as a keyring."""
    insecure = ('Acquire::AllowInsecureRepositories "true"', 'APT::Get::AllowUnauthenticated "true"')
    options = [*UNNAMED_KEYRING, *(f"--aptopt={option}" for option in insecure)]
    folder, home = scratch / "extracted", scratch / "gnupg"
    home.mkdir(mode=0o700)
    _run("mmdebstrap", "--quiet", "--variant=extract", *options, "--include=ubuntu-keyring", SUITE, folder)
    gpg = ["gpg", "--quiet", "--homedir", str(home)]
    _run(*gpg, "--import", folder / "usr/share/keyrings/ubuntu-archive-keyring.gpg")
    key = subprocess.run([*gpg, "--export", ARCHIVE_KEY], check=True, capture_output=True).stdout
    assert key, f"the archive's keyring has no key {ARCHIVE_KEY}"
    return key


def copy_root(root: Path, target: Path) -> None:
    """Copy a root file system, sharing blocks if the file system supports it."""
    shutil.rmtree(target, ignore_errors=True)
    _run("cp", "-a", "--reflink=auto", root, target)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
