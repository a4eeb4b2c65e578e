"""torchao in a folder of the cache, installed once: the environment of the tests does not have it."""

import subprocess
import sys
from pathlib import Path

from experiments.system.files import cache_folder
from tests.testbed.openstack.environment import locked

PACKAGE = "torchao==0.18.0"
"""The version that was measured on an H200."""


def torchao_folder() -> Path:
    """Return the folder for PYTHONPATH; install the package if it is missing (a download of 3 MB)."""
    folder = cache_folder() / PACKAGE.replace("==", "-")
    with locked(folder):
        if not (folder / ".made").exists():
            install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            subprocess.run([*install, PACKAGE], check=True, stdout=sys.__stderr__)
            (folder / ".made").touch()
    return folder
