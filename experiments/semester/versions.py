"""The sets of versions that a check compares, and an environment for each, made from locked lists of packages."""

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from experiments.errors import InputError
from experiments.runners.software import PIN, PRINT_VERSIONS, lock_files, parse_software
from experiments.system.files import cache_folder, write_atomically
from provision.configure.build_context import packaged_folder

Versions = Literal["as-taught", "current", "newest"]
VERSION_SETS: tuple[Versions, ...] = get_args(Versions)
NEWEST_FILE = "newest.txt"
CONFLICTING_PACKAGES = ("litgpt",)
"""Packages whose declared requirements conflict with the versions in the lists. They are resolved separately, without
their dependencies."""
TORCH_DEPENDENCIES = re.compile(r"nvidia-|cuda-|triton\b")
"""Names of PyTorch's dependencies, which differ between machines."""
BLOCK_START = re.compile(r"^(?=\S)", re.MULTILINE)
"""Beginning of a package in uv's output: a line that is not indented. The indented lines after it are its hashes."""
ERROR_LINES = 3


class NotInstalled(InputError):
    """A set of versions cannot be resolved or installed; the message has the last lines of uv's output."""


def python_of(versions: Versions, folder: Path, today: date) -> Path:
    """Return the Python interpreter of an environment with these versions; create the environment if it is missing.

    For the versions "current", this is the interpreter of this process. The list of the versions "newest" is resolved
    once a day, and stored in ``folder``, so that a resumed check uses the same list. Raises NotInstalled.
    """
    if versions == "current":
        return Path(sys.executable)
    if versions == "as-taught":
        return _create_environment("env", lock_files(versions))
    lock = folder / NEWEST_FILE
    if not lock.exists():
        write_atomically(lock, newest_lock(today).read_text())
    return _create_environment("newest", [lock])


def newest_lock(today: date) -> Path:
    """Return the path of a list of the newest releases that are compatible with each other, cached for a day.

    The list has the packages in the list of the versions "current". Raises NotInstalled.
    """
    path = cache_folder() / f"newest-{today.isoformat()}.txt"
    if not path.exists():
        names = [name for name, _ in PIN.findall((packaged_folder("containers") / "current.txt").read_text())]
        together = _resolve([name for name in names if name not in CONFLICTING_PACKAGES])
        text = format_lock_file(
            together + _resolve([name for name in names if name in CONFLICTING_PACKAGES], "--no-deps"), names
        )
        for old in cache_folder().glob("newest-*.txt"):
            old.unlink()
        write_atomically(path, text)
    return path


def format_lock_file(resolved: str, names: Collection[str]) -> str:
    """Return uv's output as a list in the form of containers/locks: PyTorch in a comment, without its dependencies.

    names: the requested packages, which are never removed.
    """
    blocks = [block for block in BLOCK_START.split(resolved) if block.strip()]
    blocks = [block for block in blocks if block.split("==")[0] in names or not TORCH_DEPENDENCIES.match(block)]
    torch = [f"# {block.split()[0]}\n" for block in blocks if block.startswith("torch==")]
    return "".join([*torch, *(block for block in blocks if not block.startswith("torch=="))])


def versions_in(python: Path) -> dict[str, str]:
    """Return the versions of the packages that affect a result, in the environment of ``python``."""
    return dict(parse_software(_run_command([str(python), "-c", PRINT_VERSIONS])).versions)


def _resolve(names: Sequence[str], *options: str) -> str:
    python = ".".join(map(str, sys.version_info[:2]))
    output_options = ("--quiet", "--no-header", "--no-annotate", "--generate-hashes", f"--python-version={python}")
    return _run_command(
        [sys.executable, "-m", "uv", "pip", "compile", *output_options, *options, "-"], "\n".join(names)
    )


def _create_environment(prefix: str, locks: Sequence[Path]) -> Path:
    """Create the environment that ``locks`` define, unless it exists; return its Python.

    The Makefile computes the same name of the folder, so both share the environment. Older environments of the versions
    "newest" are removed.
    """
    digest = sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:12]
    folder = cache_folder() / f"{prefix}-{digest}-py{platform.python_version()}"
    if prefix == "newest":
        for old in cache_folder().glob("newest-*-py*"):
            if old.is_dir() and old != folder:
                shutil.rmtree(old)
    script = packaged_folder("containers") / "environment.py"
    _run_command(["flock", f"{folder}.lock", sys.executable, str(script), str(folder), *map(str, locks)])
    return folder / "bin" / "python"


def _run_command(command: Sequence[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotInstalled(" ".join(lines[-ERROR_LINES:]))
    return done.stdout
