"""The user's ssh configuration as OpenSSH itself resolves it, so that every connection uses the same settings.

``ssh -G`` supports Match, Include and patterns; other parsers of the file do not.
"""

import subprocess
from collections.abc import Sequence

from provision.errors import BadSshConfig
from provision.ssh.login import last_line

PROXY_SETTINGS = ("proxyjump", "proxycommand")
HOST_SETTINGS = ("hostname", "user", "port", "identityfile", "userknownhostsfile", "hostkeyalias", *PROXY_SETTINGS)
"""Settings that are used for a host of the configuration."""


def resolve_host(name: str) -> str:
    """Return the text of a configuration file with the settings of a host and of all jump hosts before it.

    Raises BadSshConfig if OpenSSH rejects the configuration.
    """
    return _config_block(name, [name], HOST_SETTINGS)


def resolve_jump_hosts(name: str, arguments: Sequence[str]) -> str:
    """Return the same text for a host whose ``arguments`` have all settings except the jump hosts."""
    return _config_block(name, arguments, PROXY_SETTINGS)


def _config_block(name: str, arguments: Sequence[str], settings: Sequence[str]) -> str:
    lines = [line for line in _query_openssh(arguments) if line.partition(" ")[0] in settings]
    jumps = [hop for line in lines if line.startswith("proxyjump ") for hop in line.partition(" ")[2].split(",")]
    hosts = dict.fromkeys(_host_of(hop) for hop in jumps if hop != "none")
    block = "\n  ".join([f"Host {name}", *lines])
    return "\n".join([block, *(_config_block(host, [host], HOST_SETTINGS) for host in hosts if host != name)])


def _query_openssh(arguments: Sequence[str]) -> list[str]:
    result = subprocess.run(
        ["ssh", "-G", *arguments], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
    )
    if result.returncode:
        raise BadSshConfig(f"ssh configuration: {last_line(result.stderr)}; correct ~/.ssh/config")
    return result.stdout.splitlines()


def _host_of(hop: str) -> str:
    """Return the host of user@host:port."""
    host = hop.rpartition("@")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
