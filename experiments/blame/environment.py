"""Environments of exact versions, each created once, and what their packages need of each other."""

import hashlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.blame.pins import Pins, normalized
from experiments.blame.uv import create
from experiments.system.files import cache_folder
from experiments.system.lock import lock_folder

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MADE = ".made"


class CannotCreate(Exception):
    """uv cannot create the environment; the message has its reason in one line."""


class Environment:
    """A created environment."""

    def __init__(self, folder: Path, pins: Pins) -> None:
        self.folder, self.pins = folder, pins

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def name(self) -> str:
        return self.folder.name

    def packages(self) -> dict[str, Distribution]:
        """Return the installed packages by normalized name."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        return {normalized(one.metadata["Name"]): one for one in distributions(path=[str(site)])}

    def needs(self) -> Mapping[str, "list[Requirement]"]:
        """Return what each installed package needs on this machine, without its extras."""
        return {name: list(_requirements(one)) for name, one in self.packages().items()}


def blame_folder() -> Path:
    """Return the folder of environments and of finished steps, in the cache folder."""
    return cache_folder() / "blame"


def created(pins: Pins) -> Environment:
    """Return the environment of ``pins``; create it if it does not exist. Raises CannotCreate, InputError if locked."""
    text = "".join(f"{name}=={pin.version} {' '.join(pin.hashes)}\n" for name, pin in sorted(pins.items()))
    digest = hashlib.sha256(f"{platform.python_version()}\n{text}".encode()).hexdigest()[:12]
    folder = blame_folder() / f"env-{digest}"
    if not (folder / MADE).exists():
        with lock_folder(folder):
            requirements = folder.with_suffix(".txt")
            requirements.write_text(text)
            try:
                create(folder, requirements)
            except subprocess.CalledProcessError as error:
                raise CannotCreate(" ".join(error.stderr.split())) from None
            (folder / MADE).touch()
    return Environment(folder, pins)


def _requirements(one: Distribution) -> "Iterator[Requirement]":
    from packaging.requirements import Requirement

    for text in one.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield needed
