"""The Python environment of the services: created once for each set of pins and cached."""

import contextlib
import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.system.files import cache_folder

PROJECT = Path(__file__).parents[3]
LOCK = PROJECT / "containers" / "locks" / "openstack.txt"


def environment() -> Path:
    """Return the folder of the environment; create it if it is missing (minutes of download)."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"openstack-{digest}-py{sys.version_info.major}.{sys.version_info.minor}"
    with locked(folder):
        if not (folder / ".made").exists():
            command = [sys.executable, *map(str, (PROJECT / "containers" / "environment.py", folder, LOCK))]
            subprocess.run(command, stdout=sys.__stderr__, check=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time create that folder of the cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
