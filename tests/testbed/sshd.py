"""A real OpenSSH server on the floating IPs of the box: the one part of a booted node that leasing looks at.

The user ``cc`` exists for this process alone, in a mount namespace whose /etc/passwd has it. All of /etc is mounted
there: a mount on the file alone would vanish when somebody adds a user, which puts another file in its place.
"""

import shutil
import socket
import subprocess
import time
from pathlib import Path

from experiments.parent import die_with_parent
from provision.ssh import USER, KeyPair
from tests.testbed.openstack.settings import FLOATING_IPS

PORT = 22
UP_S = 20


class Sshd:
    def __init__(self, folder: Path, prefix: str, key: KeyPair) -> None:
        self._folder = folder
        self.addresses = [f"{prefix}.{last}" for last in FLOATING_IPS]
        new_key(folder / "host")
        (folder / "authorized").write_text(key.public)
        passwd = Path("/etc/passwd").read_text() + f"{USER}:*:0:0::{folder}:/bin/sh\n"
        (folder / "etc").mkdir()
        (folder / "etc" / "passwd").write_text(passwd)
        options = {
            "Port": PORT,
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
        }
        listen = [f"ListenAddress {address}" for address in self.addresses]
        (folder / "config").write_text("\n".join([*listen, *(f"{name} {value}" for name, value in options.items())]))

    def start(self) -> None:
        program = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin") or "sshd"
        Path("/run/sshd").mkdir(exist_ok=True)
        etc = f"mount -t overlay -o lowerdir={self._folder}/etc:/etc none /etc"
        script = f"{etc} && exec {program} -D -e -f {self._folder}/config"
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self._wait()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def new_host_key(self) -> None:
        """Be another machine at the same address."""
        self.stop()
        (self._folder / "host").unlink()
        new_key(self._folder / "host")
        self.start()

    def _wait(self) -> None:
        ends = time.monotonic() + UP_S
        while time.monotonic() < ends and self._process.poll() is None:
            try:
                socket.create_connection((self.addresses[0], PORT), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"sshd is not up: {(self._folder / 'log').read_text()[-2000:]}")


def new_key(file: Path) -> Path:
    """A new key pair in ``file`` and ``file``.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", file], check=True)
    return file
