"""A real OpenSSH server on this machine, run by the user who runs the tests."""

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from experiments.system.signals import die_with_parent
from provision.ssh.login import Login

PROGRAM = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
ADDRESS = "127.0.0.1"
UP_S = 20


class Sshd:
    """The server; the private key in ``folder``/key logs in as any user. ``more``: further configuration options.

    within: prefix of the command line that starts the server. port: None for a free port.
    """

    def __init__(
        self,
        folder: Path,
        more: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        addresses: Sequence[str] = (ADDRESS,),
        port: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._within, self.addresses = folder, within, list(addresses)
        self.key = new_key(folder / "key")
        self.port = port or free_port()
        new_key(folder / "host")
        options = {
            "Port": self.port,
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "key.pub",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
            **(more or {}),
        }
        listen = [f"ListenAddress {address}" for address in addresses]
        lines = [f"{name} {value}" for name, value in options.items()]
        (folder / "config").write_text("\n".join([*listen, *lines]))

    def login(self, user: str | None = None, alias: str = "server-1") -> Login:
        """Return a login that pins the server's current host key."""
        known_hosts = self._folder / f"known-{alias}"
        known_hosts.write_text(f"{alias} {(self._folder / 'host.pub').read_text()}")
        return Login(ADDRESS, alias, self.key, known_hosts, user or getpass.getuser(), self.port)

    def start(self) -> "Sshd":
        """Start the server and wait until it listens."""
        assert PROGRAM
        with suppress(OSError):
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [*self._within, PROGRAM, "-D", "-e", "-f", str(self._folder / "config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self._wait()
        return self

    def drop_connections(self) -> None:
        """Drop every open connection; commands started over them continue."""
        for child in psutil.Process(self._process.pid).children():
            with suppress(psutil.Error):
                child.kill()

    def stop(self) -> None:
        """Stop the server."""
        self.drop_connections()
        self._process.kill()
        self._process.wait()

    def new_host_key(self) -> None:
        """Restart with another host key, as another machine at the same address."""
        self.stop()
        (self._folder / "host").unlink()
        new_key(self._folder / "host")
        self.start()

    def _wait(self) -> None:
        ends = time.monotonic() + UP_S
        while time.monotonic() < ends and self._process.poll() is None:
            with suppress(OSError):
                socket.create_connection((self.addresses[0], self.port), timeout=1).close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"sshd is not up: {(self._folder / 'log').read_text()[-2000:]}")


def free_port() -> int:
    """Return a free port."""
    with socket.create_server((ADDRESS, 0)) as free:
        port: int = free.getsockname()[1]
    return port


def new_key(file: Path) -> Path:
    """Create a key pair in ``file`` and ``file``.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", file], check=True)
    return file


def ssh_at(home: Path) -> Path:
    """Return a folder for PATH with an OpenSSH client that reads ``home``/.ssh/config; plain ssh ignores HOME."""
    (home / ".ssh").mkdir()
    (home / "bin").mkdir()
    wrapper = home / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/.ssh/config "$@"\n')
    wrapper.chmod(0o755)
    return wrapper.parent
