"""A real OpenSSH server on the floating IPs of the box: the one part of a booted node that leasing looks at.

The user ``cc`` exists for this process alone, in a mount namespace whose /etc/passwd has it. All of /etc is mounted
there: a mount on the file alone would vanish when somebody adds a user, which puts another file in its place.
"""

from pathlib import Path

from provision.ssh.login import USER, KeyPair
from tests.support.sshd import Sshd
from tests.testbed.openstack.settings import FLOATING_IPS

PORT = 22


class FloatingSshd(Sshd):
    """Listens at every floating IP of ``prefix`` and lets ``key`` in."""

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
