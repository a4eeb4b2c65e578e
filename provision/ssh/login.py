"""SSH logins by the OpenSSH client. The first login to a new server records its host key; later logins accept only it.

Such a pinned host key is recorded for the server, not for its address: the site may assign the address to another
server later.
"""

import base64
import hashlib
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from provision.errors import BadHostKey, BadKey, LoginRejected, NotReached
from provision.files import read_text
from provision.ssh.process import last_line
from provision.ssh.ssh_config import AGENT_VARIABLE, agent_socket_for_nodes

USER = "cc"
"""The login user of Chameleon's disk images."""
CONNECT_TIMEOUT_S = 15
PUBLIC_KEY_PREFIXES = ("ssh-", "ecdsa-", "sk-")
"""The beginnings of a public key's text, for all types of keys."""


@dataclass(frozen=True)
class KeyPair:
    """The file of a private key, and the text of the public key in the file with the suffix .pub."""

    file: Path
    public: str


@dataclass(frozen=True)
class Login:
    """A login as the user ``user`` with the private key in the file ``key``.

    Only the host key that the file ``known_hosts`` lists under ``alias`` is accepted.
    """

    host: str
    alias: str
    key: Path
    known_hosts: Path
    user: str = USER
    port: int = 22

    @property
    def command(self) -> str:
        """The command line to type in a terminal."""
        return shlex.join(self.arguments())

    def arguments(self, accept_new_host_key: bool = False) -> list[str]:
        """Return the OpenSSH client's command line; accept_new_host_key: accept and record an unknown host key."""
        options = {
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_TIMEOUT_S),
            "HostKeyAlias": self.alias,
            "UserKnownHostsFile": str(self.known_hosts),
            "StrictHostKeyChecking": "accept-new" if accept_new_host_key else "yes",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        port = [] if self.port == 22 else ["-p", str(self.port)]
        return ["ssh", "-i", str(self.key), *flags, *port, f"{self.user}@{self.host}"]


@dataclass(frozen=True)
class SshConfigHost:
    """A host of the user's own ~/.ssh/config.

    The host key must be in the user's known_hosts. Private keys come from the configuration, the agent and ~/.ssh.
    """

    name: str

    @property
    def command(self) -> str:
        """The command line to type in a terminal."""
        return shlex.join(["ssh", self.name])

    def arguments(self) -> list[str]:
        """Return a command line of the OpenSSH client that never prompts and accepts no unknown host key."""
        options = {"BatchMode": "yes", "ConnectTimeout": str(CONNECT_TIMEOUT_S), "StrictHostKeyChecking": "yes"}
        return ["ssh", *(f"-o{name}={value}" for name, value in options.items()), self.name]


def key_pair(file: Path) -> KeyPair:
    """Return the key pair of a private key's file. Raises BadKey if this or the .pub file is missing or invalid."""
    public = file.with_name(f"{file.name}.pub")
    for needed in (file, public):
        if not needed.is_file():
            raise BadKey(f"SSH key {needed} does not exist; create one: ssh-keygen -t ed25519 -f {file}")
    try:
        text = read_text(public).strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text.startswith(PUBLIC_KEY_PREFIXES) or len(text.split()) < 2 or len(text.splitlines()) > 1:
        raise BadKey(f"SSH key {public} is not a public key; create one: ssh-keygen -y -f {file} > {public}")
    return KeyPair(file, text)


def check_key(pair: KeyPair) -> None:
    """Raise BadKey unless the private key can be used without a prompt and belongs to the public key.

    A key with a passphrase is usable if the agent has it.
    """
    if pair.file.stat().st_mode & 0o077:
        raise BadKey(f"{pair.file} is readable by other users; run: chmod 600 {pair.file}")
    keygen = ["ssh-keygen", "-y", "-P", "", "-f", str(pair.file)]
    result = subprocess.run(keygen, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    blob = pair.public.split()[1]
    if result.returncode:
        if blob not in _keys_in_agent():
            reason = last_line(result.stderr) or "it cannot be read"
            raise BadKey(
                f"SSH key {pair.file} cannot be used without a prompt ({reason}); "
                f"load it: ssh-add {pair.file}, or pass another --key"
            )
    elif result.stdout.split()[1] != blob:
        raise BadKey(
            f"SSH keys {pair.file} and {pair.file}.pub do not belong together; "
            f"run: ssh-keygen -y -f {pair.file} > {pair.file}.pub"
        )


def _keys_in_agent() -> list[str]:
    """Return the public keys in the agent, in base64; [] without an agent."""
    result = subprocess.run(
        ["ssh-add", "-L"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, AGENT_VARIABLE: agent_socket_for_nodes()},
    )
    return [fields[1] for line in result.stdout.splitlines() if len(fields := line.split()) > 1]


def fingerprint(public: str) -> str:
    """Return a public key's fingerprint as ssh-keygen -l prints it. Raises BadKey if the key is invalid."""
    try:
        digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    except (IndexError, ValueError):
        raise BadKey(f"{public[:30]!r} is not a public SSH key; create one: ssh-keygen -t ed25519") from None
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def try_login(login: Login) -> None:
    """Run a command on the machine; record its host key at first contact.

    Raises NotReached with ssh's error: LoginRejected if the machine rejects the key, BadHostKey if its host key has
    changed.
    """
    command = [*login.arguments(accept_new_host_key=True), "true"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=2 * CONNECT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise NotReached(f"{login.host}: no answer in {2 * CONNECT_TIMEOUT_S} s") from None
    if result.returncode == 0:
        return
    line = last_line(result.stderr) or f"exit code {result.returncode}"
    if "Host key verification failed" in result.stderr:
        raise BadHostKey(changed_host_key_message(login))
    if "Permission denied" in result.stderr:
        raise LoginRejected(f"{login.host}: {line}")
    raise NotReached(f"{login.host}: {line}")


def changed_host_key_message(login: Login) -> str:
    """Return the message that a host key differs from the pinned key, with the commands that accept the new key."""
    return (
        f"{login.host}: its host key differs from the pinned one; if the node was rebuilt, accept its new key: "
        f"ssh-keygen -R {login.alias} -f {login.known_hosts}, then testbed lease again"
    )


def forget_host_key(alias: str, known_hosts: Path) -> None:
    """Remove the host key of a deleted server."""
    if known_hosts.exists():
        subprocess.run(["ssh-keygen", "-R", alias, "-f", known_hosts], capture_output=True, check=False)
