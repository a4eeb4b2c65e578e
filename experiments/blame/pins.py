"""Read the exact versions of an environment from a list, a lock file with hashes, or a recorded run."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.blame.uv import resolve
from experiments.errors import InputError
from experiments.results.run_folder import RUN_FILE, RunFolder
from experiments.runners.software import LOCKS, lock_files
from provision.files import read_text

PIN_LINE = re.compile(r"(?:# )?([A-Za-z0-9][\w.-]*)==([^\s;\\]+)\s*(.*)")
"""A line with a pin and its options. The pin of PyTorch is in a comment, because its file depends on the machine."""
LINE_CONTINUATION = re.compile(r"\\\s*\n\s*")
HASH_OPTION = re.compile(r"--hash=\S+")


class Pin(NamedTuple):
    """An exact version, and the hashes of its files; without hashes, uv accepts any file of the version."""

    version: str
    hashes: tuple[str, ...] = ()


Pins = Mapping[str, Pin]
"""Pins by the normalized name of the package."""


def normalize_name(name: str) -> str:
    """Return a package name as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(source: str, flag: str) -> Pins:
    """Return the pins that ``source`` selects: current, as-taught, the folder of a run, or a file of exact versions.

    flag: the option whose value is ``source``, for messages. Raises InputError for any other text, and if uv cannot
    resolve the dependencies of a run's versions.
    """
    if source in LOCKS:
        return _pins_of_locks(source)
    path = Path(source)
    if (path / RUN_FILE).is_file():
        return _pins_of_run(RunFolder(path), flag)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError):
        allowed = f"{', '.join(LOCKS)}, the folder of a run, or a file of exact versions"
        raise InputError(f"{flag} {source}: allowed: {allowed}") from None
    return read_pins(text, f"{flag} {source}")


def read_pins(text: str, where: str) -> Pins:
    """Return the pins of a list or a lock file. Raises InputError for a line that is not an exact version."""
    found = {}
    for line in LINE_CONTINUATION.sub(" ", text).splitlines():
        if pin := PIN_LINE.fullmatch(line.strip()):
            name, version, options = pin.groups()
            found[normalize_name(name)] = Pin(version, tuple(HASH_OPTION.findall(options)))
        elif line.strip() and not line.strip().startswith("#"):
            raise InputError(f"{where}: {line.strip()!r} is not an exact version; allowed: NAME==VERSION")
    if not found:
        raise InputError(f"{where}: has no exact version; allowed: lines NAME==VERSION")
    return found


def _pins_of_locks(variant: str) -> Pins:
    return {name: pin for lock in lock_files(variant) for name, pin in read_pins(lock.read_text(), lock.stem).items()}


def _pins_of_run(folder: RunFolder, flag: str) -> Pins:
    """Return the pins of the run's image variant, with the versions that the run recorded where they differ.

    The dependencies of the recorded versions also replace those of the image variant.
    """
    recorded = {
        normalize_name(name): version.partition("+")[0]
        for result in folder.results().values()
        for name, version in result.versions.items()
    }
    pins = _pins_of_locks(folder.read_run().image_variant)
    other = {name: version for name, version in recorded.items() if pins.get(name, Pin("")).version != version}
    if not other:
        return pins
    try:
        needed = read_pins(resolve(other, {name: pin.version for name, pin in pins.items()}), flag)
    except subprocess.CalledProcessError as error:
        raise InputError(f"{flag} {folder.path}: {' '.join(error.stderr.split())}") from None
    return {**pins, **{name: pin for name, pin in needed.items() if pins.get(name, Pin("")).version != pin.version}}
