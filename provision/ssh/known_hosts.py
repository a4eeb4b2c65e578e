"""Find the keys of a host that the user has accepted. A leased node that connects to this host checks it with them."""

import subprocess
from pathlib import Path

from provision.errors import BadHostKey

FILES = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


def pinned_lines(host: str) -> str:
    """Return the lines of the user's and the system's known_hosts with the keys of a host.

    Raises BadHostKey if there is none.
    """
    lines: list[str] = []
    for file in (Path(name).expanduser() for name in FILES):
        if file.is_file():
            result = subprocess.run(["ssh-keygen", "-F", host, "-f", file], capture_output=True, text=True)
            lines += [f"{line}\n" for line in result.stdout.splitlines() if not line.startswith("#")]
    if not lines:
        raise BadHostKey(f"{host}: its host key is not in {FILES[0]}; log in there once by `ssh {host}`")
    return "".join(lines)
