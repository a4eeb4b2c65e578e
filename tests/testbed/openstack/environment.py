"""The Python environment of the services: created once for each set of pins and cached."""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

PINS = Path(__file__).with_name("requirements.txt")


def cache() -> Path:
    return Path(os.environ["TESTBED_CACHE"])


def environment() -> Path:
    """Return the folder of the environment; create it if it is missing (minutes of download)."""
    digest = hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
    folder = cache() / f"openstack-{digest}-py{sys.version_info.major}.{sys.version_info.minor}"
    with locked(folder):
        if not (folder / ".made").exists():
            _make(folder)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time create that folder of the cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path) -> None:
    print(f"making the environment of the OpenStack services in {folder}", file=sys.__stderr__, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-r", PINS], check=True)
    (folder / ".made").touch()
