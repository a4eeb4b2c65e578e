"""Run a script on a copy of the working folder, with a temporary home, without network, in separate namespaces.

The sandbox does not protect other files: the script can read and write absolute paths outside of the working folder.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError
from experiments.system.files import GIB
from provision.temporary import TemporaryFolder

MAX_FOLDER_GIB = 2.0
"""Maximum size of a working folder that is copied."""
TEMPORARY_FOLDERS = {
    "HOME": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "TMPDIR": "tmp",
}
LAUNCHER = re.compile(r"(LOCAL_|GROUP_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_.*")
"""Environment variables of a process that torchrun or srun has started."""
NAMESPACE_OPTIONS = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")


class ExecutionPlace(NamedTuple):
    """The working folder and environment variables of a script.

    command_prefix: words before the script's command. folder_mapping: the original working folder and its copy.
    hides_launcher: the script does not get the variables with which a launcher has started this process.
    """

    folder: Path
    environment: dict[str, str]
    command_prefix: tuple[str, ...] = ()
    folder_mapping: tuple[str, str] = ("", "")
    hides_launcher: bool = False

    @property
    def inherited_environment(self) -> dict[str, str]:
        """Return the environment variables of this process that the script gets."""
        return {
            name: value for name, value in os.environ.items() if not (self.hides_launcher and LAUNCHER.fullmatch(name))
        }

    def translate_command(self, command: Sequence[str]) -> list[str]:
        """Return the command with absolute paths of the working folder replaced by paths of the copy."""
        source, copy = self.folder_mapping
        return [copy + word[len(source) :] if source and word.startswith(f"{source}/") else word for word in command]


@contextmanager
def sandbox() -> Iterator[ExecutionPlace]:
    """Yield a place with a copy of the working folder, which is removed at the end.

    Raises InputError for a working folder of more than MAX_FOLDER_GIB GiB.
    """
    source = Path.cwd()
    _reject_large(source)
    with TemporaryFolder("sandbox") as root:
        shutil.copytree(source, root / "work", symlinks=True)
        variables = {variable: str(root / folder) for variable, folder in TEMPORARY_FOLDERS.items()}
        for folder in variables.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        work = str(root / "work")
        yield ExecutionPlace(root / "work", {**variables, "PWD": work}, isolation_command(), (str(source), work))


@cache
def isolation_command() -> tuple[str, ...]:
    """Return the command that starts a process without network in its own namespaces; empty if that is not allowed."""
    user_mapping = () if os.geteuid() == 0 else ("--map-root-user",)
    command = ("unshare", *user_mapping, *NAMESPACE_OPTIONS)
    try:
        works = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    return command if works else ()


def describe_place(sandboxed: bool) -> str:
    """Describe where the script runs."""
    if not sandboxed:
        return "in this folder, with your files and network (--sandbox: in a copy)"
    network = (
        "without network" if isolation_command() else "with network, because unshare is not allowed on this machine"
    )
    return f"in a copy of this folder, {network}"


def _reject_large(folder: Path) -> None:
    size = 0
    for root, _, files in os.walk(folder):
        size += sum(os.lstat(os.path.join(root, name)).st_size for name in files)
        if size > MAX_FOLDER_GIB * GIB:
            raise InputError(
                f"--sandbox: {folder} has more than {MAX_FOLDER_GIB:g} GiB, the maximum for a copy; "
                "change to a folder that has only the script"
            )
