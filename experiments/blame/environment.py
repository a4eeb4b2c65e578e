"""Create environments of exact versions, each once, and read the requirements of their packages."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.blame.pins import Pins, normalize_name
from experiments.blame.uv import add_dependencies, create_without_dependencies
from experiments.system.files import cache_folder
from experiments.system.lock import lock_folder

if TYPE_CHECKING:
    from packaging.requirements import Requirement

COMPLETE_MARKER = ".made"
"""File that exists only in a complete environment."""


class EnvironmentNotCreated(Exception):
    """uv cannot create the environment; the message states the reason in one line."""


class Environment:
    """A folder with a Python and the packages in ``pins``, created by ``create_environment``."""

    def __init__(self, folder: Path, pins: Pins) -> None:
        self.folder, self.pins = folder, pins

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def site_packages(self) -> Path:
        """Return the folder of the installed packages."""
        (folder,) = self.folder.glob("lib/python*/site-packages")
        return folder

    def packages(self) -> dict[str, Distribution]:
        """Return the installed packages by normalized name."""
        return {normalize_name(one.metadata["Name"]): one for one in distributions(path=[str(self.site_packages)])}

    def requirements(self) -> Mapping[str, "list[Requirement]"]:
        """Return the requirements of each installed package: those that apply to this machine, without extras."""
        return {name: list(_requirements(package)) for name, package in self.packages().items()}

    def reuse_bytecode(self, other: "Environment") -> None:
        """Reuse the bytecode files of ``other`` if their source files are the same files (hard links) here.

        Otherwise, a new environment has no bytecode, and compiling the imported libraries takes longer than most rows.
        """
        for folder, _, names in os.walk(other.site_packages):
            if Path(folder).name == "__pycache__":
                target = self.site_packages / Path(folder).relative_to(other.site_packages)
                self._link_bytecode(target, Path(folder), names)

    def _link_bytecode(self, target: Path, compiled: Path, names: Sequence[str]) -> None:
        for name in names:
            source = f"{name.partition('.')[0]}.py"
            with suppress(FileNotFoundError, FileExistsError):
                if (target.parent / source).samefile(compiled.parent / source):
                    target.mkdir(exist_ok=True)
                    (target / name).hardlink_to(compiled / name)


def blame_folder() -> Path:
    """Return the cache folder of the created environments and of the stored observations."""
    return cache_folder() / "blame"


def create_environment(pins: Pins, similar: Sequence[Environment] = ()) -> Environment:
    """Return the environment with the versions in ``pins``; create it if it is missing.

    similar: environments whose bytecode files a new environment reuses. Raises EnvironmentNotCreated, or
    InputError if another process is creating the environment.
    """
    text = "".join(f"{name}=={pin.version} {' '.join(pin.hashes)}\n" for name, pin in sorted(pins.items()))
    digest = hashlib.sha256(f"{platform.python_version()}\n{text}".encode()).hexdigest()[:12]
    folder = blame_folder() / f"env-{digest}"
    environment = Environment(folder, pins)
    if not (folder / COMPLETE_MARKER).exists():
        with lock_folder(folder):
            requirements = folder.with_suffix(".txt")
            requirements.write_text(text)
            try:
                create_without_dependencies(folder, requirements)
                if torch := pins.get("torch"):
                    add_dependencies(
                        folder, f"torch=={torch.version}", {name: pin.version for name, pin in pins.items()}
                    )
            except subprocess.CalledProcessError as error:
                raise EnvironmentNotCreated(" ".join(error.stderr.split())) from None
            for other in similar:
                environment.reuse_bytecode(other)
            (folder / COMPLETE_MARKER).touch()
    return environment


def _requirements(package: Distribution) -> "Iterator[Requirement]":
    from packaging.requirements import Requirement

    for text in package.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield needed
