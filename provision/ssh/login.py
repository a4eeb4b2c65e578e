"""SSH to a machine that was just booted, by the OpenSSH client; each server's host key is recorded at first and pinned.

A pinned key belongs to the server, not to its address, which another server may have tomorrow.
"""

import base64
import hashlib
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provision.errors import BadKey

USER = "cc"
CONNECT_S = 15
KINDS = ("ssh-", "ecdsa-", "sk-")
"""How public keys begin."""


@dataclass(frozen=True)
class KeyPair:
    """A private key's file, and the text of the public key beside it."""

    file: Path
    public: str


@dataclass(frozen=True)
class Login:
    """How a machine is logged in to: as ``user``, with the private key in ``key``.

    The machine shows the host key that the file ``known_hosts`` has under ``alias``, and no other is accepted.
    """

    host: str
    alias: str
    key: Path
    known_hosts: Path
    user: str = USER
    port: int = 22

    @property
    def command(self) -> str:
        """What a person types."""
        return shlex.join(self.arguments())

    def arguments(self, first: bool = False) -> list[str]:
        """The OpenSSH client's command line; ``first``: the host key is not known yet, and is to be kept."""
        options = {
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "HostKeyAlias": self.alias,
            "UserKnownHostsFile": str(self.known_hosts),
            "StrictHostKeyChecking": "accept-new" if first else "yes",
        }
        told = [f"-o{name}={value}" for name, value in options.items()]
        port = [] if self.port == 22 else ["-p", str(self.port)]
        return ["ssh", "-i", str(self.key), *told, *port, f"{self.user}@{self.host}"]


@dataclass(frozen=True)
class SshConfigHost:
    """A machine that the person's own ~/.ssh/config says how to log in to, under this name.

    Its host key is one of the person's known hosts; keys come from the configuration, the agent and ~/.ssh.
    """

    name: str

    @property
    def command(self) -> str:
        """What a person types."""
        return shlex.join(["ssh", self.name])

    def arguments(self) -> list[str]:
        """The OpenSSH client's command line; nothing is asked, and no host key is taken on trust."""
        options = {"BatchMode": "yes", "ConnectTimeout": str(CONNECT_S), "StrictHostKeyChecking": "yes"}
        return ["ssh", *(f"-o{name}={value}" for name, value in options.items()), self.name]


def key_pair(file: Path) -> KeyPair:
    """The key pair of a private key's file; BadKey where one of its two files is missing or no key."""
    public = file.with_name(f"{file.name}.pub")
    for needed in (file, public):
        if not needed.is_file():
            raise BadKey(f"SSH key {needed} is not there; make one: ssh-keygen -t ed25519 -f {file}")
    text = public.read_text().strip()
    if not text.startswith(KINDS) or len(text.split()) < 2:
        raise BadKey(f"SSH key {public} is no public key; make one: ssh-keygen -y -f {file} > {public}")
    return KeyPair(file, text)


def fingerprint(public: str) -> str:
    """Of a public key, as ssh-keygen -l shows it; BadKey where it is none."""
    try:
        digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    except (IndexError, ValueError):
        raise BadKey(f"{public[:30]!r} is no public SSH key; make one: ssh-keygen -t ed25519") from None
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def answers(login: Login) -> bool:
    """Whether a command runs on the machine. The first answer's host key is kept and no other accepted."""
    try:
        done = subprocess.run([*login.arguments(first=True), "true"], capture_output=True, timeout=2 * CONNECT_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def forget(alias: str, known_hosts: Path) -> None:
    """Drop the host key of a machine that is no more."""
    if known_hosts.exists():
        subprocess.run(["ssh-keygen", "-R", alias, "-f", known_hosts], capture_output=True, check=False)
