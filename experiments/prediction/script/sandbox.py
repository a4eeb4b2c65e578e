"""Run a script on a copy of the working folder, in a temporary home, without network and with its processes shut in.

What this is not: a script that opens an absolute path outside of the working folder reads and writes it.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError
from experiments.system.files import GIB

LARGEST_GIB = 2.0
"""Size of a working folder that is still copied."""
HOMES = {
    "HOME": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "TMPDIR": "tmp",
}
NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")


class Place(NamedTuple):
    """Where a script runs: its working folder, variables, and the words before its command; moved: from -> to."""

    folder: Path
    environment: dict[str, str]
    start: tuple[str, ...] = ()
    moved: tuple[str, str] = ("", "")

    def words(self, words: Sequence[str]) -> list[str]:
        """Return the command with absolute paths in the working folder replaced by those in the copy."""
        source, copy = self.moved
        return [copy + word[len(source) :] if source and word.startswith(f"{source}/") else word for word in words]


@contextmanager
def sandbox() -> Iterator[Place]:
    """Yield a place in a temporary folder, which is removed afterwards.

    Raises InputError for a working folder of more than LARGEST_GIB.
    """
    source = Path.cwd()
    _reject_large(source)
    with tempfile.TemporaryDirectory(prefix="testbed-sandbox-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        shutil.copytree(source, root / "work", symlinks=True)
        variables = {variable: str(root / folder) for variable, folder in HOMES.items()}
        for folder in variables.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        work = str(root / "work")
        yield Place(root / "work", {**variables, "PWD": work}, isolation(), (str(source), work))


@cache
def isolation() -> tuple[str, ...]:
    """Return the command that starts a process without network and in namespaces of its own; empty: not allowed."""
    who = () if os.geteuid() == 0 else ("--map-root-user",)
    command = ("unshare", *who, *NAMESPACES)
    try:
        works = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    return command if works else ()


def in_words(shut_in: bool) -> str:
    """Return in words where the script runs."""
    if not shut_in:
        return "in this folder, with your files and network (--sandbox: in a copy)"
    network = "without network" if isolation() else "with network, since unshare is not allowed here"
    return f"in a copy of this folder, {network}"


def _reject_large(folder: Path) -> None:
    size = 0
    for root, _, files in os.walk(folder):
        size += sum(os.lstat(os.path.join(root, name)).st_size for name in files)
        if size > LARGEST_GIB * GIB:
            raise InputError(
                f"--sandbox: {folder} has more than {LARGEST_GIB:g} GiB, which is not copied; "
                "go to the folder of the script alone"
            )
