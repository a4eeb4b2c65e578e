"""SSH to a machine that was just booted, by the OpenSSH client; each server's host key is recorded at first and pinned.

A pinned key belongs to the server, not to its address, which another server may have tomorrow.
"""

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provision.errors import BadKey

USER = "cc"
CONNECT_S = 15
KNOWN_HOSTS = "known_hosts"


@dataclass(frozen=True)
class KeyPair:
    """A private key's file, and the text of the public key beside it."""

    file: Path
    public: str

    def command(self, ip: str, server_id: str, folder: Path) -> str:
        """How a person logs in."""
        return shlex.join(_ssh(self.file, ip, server_id, folder))


def key_pair(file: Path) -> KeyPair:
    """The key pair of a private key's file; BadKey where one of its two files is missing or no key."""
    public = file.with_name(f"{file.name}.pub")
    for needed in (file, public):
        if not needed.is_file():
            raise BadKey(f"SSH key {needed} is not there; make one: ssh-keygen -t ed25519 -f {file}")
    text = public.read_text().strip()
    if not text.startswith(("ssh-", "ecdsa-", "sk-")) or len(text.split()) < 2:
        raise BadKey(f"SSH key {public} is no public key; make one: ssh-keygen -y -f {file} > {public}")
    return KeyPair(file, text)


def answers(key: KeyPair, ip: str, server_id: str, folder: Path) -> bool:
    """Whether a command runs on the server. The first answer's host key is kept in ``folder`` and no other accepted."""
    command = [*_ssh(key.file, ip, server_id, folder), "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=2 * CONNECT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def forget(server_id: str, folder: Path) -> None:
    """Drop the host key of a server that is no more."""
    file = folder / KNOWN_HOSTS
    if file.exists():
        subprocess.run(["ssh-keygen", "-R", server_id, "-f", file], capture_output=True, check=False)


def _ssh(key: Path, ip: str, server_id: str, folder: Path) -> list[str]:
    options = {
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_S),
        "HostKeyAlias": server_id,
        "UserKnownHostsFile": str(folder / KNOWN_HOSTS),
        "StrictHostKeyChecking": "accept-new",
    }
    return ["ssh", "-i", str(key), *(f"-o{name}={value}" for name, value in options.items()), f"{USER}@{ip}"]
