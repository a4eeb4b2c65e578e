"""Keys that a login offers, in OpenSSH's order: configured keys in the agent, other keys in the agent, key files."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paramiko import AuthenticationException, PKey, SSHException, Transport, UnknownKeyType
from paramiko.agent import AgentSSH
from paramiko.auth_strategy import AuthSource, AuthStrategy, InMemoryPrivateKey

from provision.files import read_text
from provision.ssh.ssh_config import agent_socket

AGENT_TIMEOUT_S = 60.0
"""How long the agent may take to respond, seconds. The agent may ask the user for a confirmation."""


class Identities(AuthStrategy):  # type: ignore[misc]
    """Offers the keys that ``ssh`` offers with the settings IdentityFile, IdentityAgent and IdentitiesOnly of the host.

    Skips a key file that is missing or needs a passphrase, because the agent may have the key.
    """

    def __init__(self, ssh_config: dict[str, Any], username: str, **_: object) -> None:
        super().__init__(ssh_config=ssh_config)
        self._username = username

    def get_sources(self) -> Iterator[AuthSource]:
        """Yield the keys in the order in which they are offered."""
        files = [Path(name).expanduser() for name in self.ssh_config.get("identityfile", [])]
        listed = {_public_key(file) for file in files}
        with _agent(agent_socket(self.ssh_config.get("identityagent"))) as agent:
            keys = sorted(agent.get_keys(), key=lambda key: key.get_base64() not in listed)
            if self.ssh_config.get("identitiesonly") == "yes":
                keys = [key for key in keys if key.get_base64() in listed]
            yield from (InMemoryPrivateKey(self._username, key) for key in keys)
        loaded = map(_private_key, files)
        yield from (InMemoryPrivateKey(self._username, key) for key in loaded if key)

    def authenticate(self, transport: Transport) -> None:
        """Offer one key after the other. If none is accepted, raises the error of the last attempt."""
        last: SSHException = AuthenticationException("no key to log in with, neither in the agent nor in a file")
        for source in self.get_sources():
            try:
                source.authenticate(transport)
            except SSHException as problem:
                last = problem
            if transport.is_authenticated():
                return
            if not transport.is_active():
                break
        raise last


@contextmanager
def _agent(path: str) -> Iterator[AgentSSH]:
    """Yield the agent at the socket ``path``. If no agent answers, the yielded agent has no keys."""
    agent = AgentSSH()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(AGENT_TIMEOUT_S)
        with suppress(OSError, SSHException):
            connection.connect(path)
            agent._connect(connection)
        yield agent


def _public_key(file: Path) -> str:
    """Return the public key for a file with a private or a public key, in base64; '' if it cannot be read."""
    for public in (file.with_name(f"{file.name}.pub"), file):
        with suppress(OSError, ValueError):
            fields = read_text(public).split()
            if len(fields) > 1 and not fields[0].startswith("-----"):
                return fields[1]
    key = _private_key(file)
    return key.get_base64() if key else ""


def _private_key(file: Path) -> PKey | None:
    """Return the key in a file, or None if it is missing, is not a private key, or needs a passphrase."""
    with suppress(OSError, SSHException, UnknownKeyType, ValueError, TypeError):
        return PKey.from_path(file)
    return None
