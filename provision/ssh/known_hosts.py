"""Find the host keys that the user has accepted for a host. A leased node accepts only them when it logs in there."""

import subprocess
from pathlib import Path

from provision.errors import BadHostKey

FILES = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


def known_hosts_lines(host: str) -> str:
    """Return the lines with a host's keys in the user's and the system's known_hosts.

    Raises BadHostKey if there is no such line.
    """
    lines: list[str] = []
    for file in (Path(name).expanduser() for name in FILES):
        if file.is_file():
            result = subprocess.run(["ssh-keygen", "-F", host, "-f", file], capture_output=True, text=True)
            lines += [f"{line}\n" for line in result.stdout.splitlines() if not line.startswith("#")]
    if not lines:
        raise BadHostKey(f"{host}: its host key is not in this computer's {FILES[0]}; log in once: ssh {host}")
    return "".join(lines)
