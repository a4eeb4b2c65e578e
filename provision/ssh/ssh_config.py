"""The user's ssh configuration as OpenSSH itself resolves it, so that every connection uses the same settings.

``ssh -G`` supports Match, Include and patterns; other parsers of the file do not.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provision.errors import BadSshConfig
from provision.ssh.process import last_line

PROXY_SETTINGS = ("proxyjump", "proxycommand")
KEY_SETTINGS = ("identityfile", "identityagent", "identitiesonly")
HOST_SETTINGS = ("hostname", "user", "port", "userknownhostsfile", "hostkeyalias", *KEY_SETTINGS, *PROXY_SETTINGS)
"""The settings of ~/.ssh/config that this program uses."""
AGENT_VARIABLE = "SSH_AUTH_SOCK"
RESPONSE_TIMEOUT_S = 20
UNKNOWN_NODE = "192.0.2.1"
"""Stands for a node whose address is not known yet. No host has this address; it is reserved for documentation."""


def resolve_host(name: str) -> str:
    """Return the text of a configuration file with the settings of a host and of its jump hosts.

    Raises BadSshConfig if OpenSSH rejects the configuration.
    """
    return _config_block(name, [name], HOST_SETTINGS)


def resolve_jump_hosts(name: str, arguments: Sequence[str]) -> str:
    """Return the text of a configuration file with the keys, the agent and the jump hosts that ssh uses for a host.

    arguments: ssh's arguments for a login to the host. They contain its other settings.
    """
    return _config_block(name, arguments, (*KEY_SETTINGS, *PROXY_SETTINGS))


def agent_socket_for_nodes() -> str:
    """Return the socket of the agent for logins to leased nodes, '' for none."""
    lines = _query_openssh([UNKNOWN_NODE])
    return agent_socket(next((line.partition(" ")[2] for line in lines if line.startswith("identityagent ")), None))


def agent_socket(setting: str | None) -> str:
    """Return the socket of the SSH agent, '' for no agent. setting: the value of IdentityAgent, None if not set."""
    if setting is None or setting == AGENT_VARIABLE:
        return os.environ.get(AGENT_VARIABLE, "")
    if setting.startswith("$"):
        return os.environ.get(setting[1:].strip("{}"), "")
    return "" if setting == "none" else str(Path(setting).expanduser())


def _config_block(name: str, arguments: Sequence[str], settings: Sequence[str]) -> str:
    lines = [line for line in _query_openssh(arguments) if line.partition(" ")[0] in settings]
    jumps = [hop for line in lines if line.startswith("proxyjump ") for hop in line.partition(" ")[2].split(",")]
    hosts = dict.fromkeys(_host_of(hop) for hop in jumps if hop != "none")
    block = "\n  ".join([f"Host {name}", *lines])
    return "\n".join([block, *(_config_block(host, [host], HOST_SETTINGS) for host in hosts if host != name)])


def _query_openssh(arguments: Sequence[str]) -> list[str]:
    command = ["ssh", "-G", *arguments]
    options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "stdin": subprocess.DEVNULL}
    try:
        result = subprocess.run(command, timeout=RESPONSE_TIMEOUT_S, **options)
    except subprocess.TimeoutExpired:
        problem = f"`ssh -G` does not end within {RESPONSE_TIMEOUT_S} s"
        raise BadSshConfig(
            f"ssh configuration: {problem}; correct ~/.ssh/config: an Include file or a Match command may wait for ever"
        ) from None
    if result.returncode:
        raise BadSshConfig(f"ssh configuration: {last_line(result.stderr)}; correct ~/.ssh/config")
    return result.stdout.splitlines()


def _host_of(hop: str) -> str:
    """Return the host of user@host:port."""
    host = hop.rpartition("@")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
