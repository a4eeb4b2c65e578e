"""A real OpenSSH server on the floating IPs: the only part of a booted node that leasing contacts.

The user ``cc`` exists only for this process, in a mount namespace with its own /etc/passwd. All of /etc is mounted: a
mount of the single file would vanish when somebody adds a user, which replaces the file.
"""

from pathlib import Path

from provision.ssh.login import USER, KeyPair
from tests.support.services.sshd import Sshd
from tests.testbed.openstack.settings import FLOATING_IPS

PORT = 22


class FloatingSshd(Sshd):
    """A server at every floating IP of ``prefix`` that accepts ``key``."""

    def __init__(self, folder: Path, prefix: str, key: KeyPair) -> None:
        (folder / "etc").mkdir()
        (folder / "etc" / "passwd").write_text(f"{Path('/etc/passwd').read_text()}{USER}:*:0:0::{folder}:/bin/sh\n")
        (folder / "authorized").write_text(key.public)
        mount = f'mount -t overlay -o lowerdir={folder}/etc:/etc none /etc && exec "$@"'
        super().__init__(
            folder,
            {"AuthorizedKeysFile": str(folder / "authorized")},
            ["unshare", "--mount", "sh", "-c", mount, "-"],
            [f"{prefix}.{last}" for last in FLOATING_IPS],
            PORT,
        )
