"""The Python environments of the services, and of tools that test them: created once for each lock and cached."""

import contextlib
import fcntl
import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.system.files import cache_folder

PROJECT = Path(__file__).parents[3]
LOCKS = PROJECT / "containers" / "locks"
LOCK = LOCKS / "openstack.txt"


def environment(name: str = "openstack") -> Path:
    """Return the folder of the environment with the lock of that name; create it if it is missing (takes minutes)."""
    lock = LOCKS / f"{name}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}-py{platform.python_version()}"
    with locked(folder):
        if not (folder / ".made").exists():
            command = [sys.executable, *map(str, (PROJECT / "containers" / "environment.py", folder, lock))]
            subprocess.run(command, stdout=sys.__stderr__, check=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time create that folder of the cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
