"""Bringing files home: what is missing or differs, in one stream, each checked by its SHA-256 there and here.

A file is FILE.part until it has been checked; a large one that was cut off goes on where it was. What was spoiled on
the way is fetched again.
"""

import hashlib
import os
import shlex
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, BinaryIO

from experiments.result import CHECKPOINTS_FOLDER, PROGRESS_FILE, RESULT_FILE, file_sha256
from provision.errors import NotReached
from provision.shell import Shell

TRIES = 3
CHUNK = 1 << 18
RESUMED_BYTES = 1 << 23
TIMEOUT_S = 3600.0
SKIPPED = f"-name {CHECKPOINTS_FOLDER} -prune -o -type f ! -name '*.part'"


class Spoiled(NotReached):
    """Files that arrive with another checksum each time."""


@dataclass(frozen=True)
class File:
    """A file there; its path is from the folder that is brought."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Arrived:
    """How far a pull is: files and bytes of those that it fetches, and the time left in seconds, where known."""

    files: int
    of_files: int
    bytes: int
    of_bytes: int
    left_s: float | None


Watch = Callable[[Arrived], None]


def pull(shell: Shell, folder: str, into: Path, watch: Watch = lambda arrived: None) -> int:
    """Bring everything of ``folder``, result.json last; how many files were fetched.

    Spoiled when a file cannot be brought as it is there; NotReached when the line is cut: the next call goes on.
    """
    fetched = 0
    verified: set[File] = set()
    for _ in range(TRIES):
        there = _with_sums(shell, folder)
        verified |= {file for file in there if file not in verified and _same(into / file.path, file)}
        missing = [file for file in there if file not in verified]
        if not missing:
            return fetched
        before = len(verified)
        verified |= _fetch(shell, folder, into, missing, watch)
        fetched += len(verified) - before
        if all(file in verified for file in missing):
            return fetched
    raise Spoiled(f"{shell.where}: {missing[0].path} of {folder} arrives with another checksum each time")


def glance(shell: Shell, folders: Iterable[tuple[str, Path]], names: Sequence[str]) -> None:
    """Bring what files of these names grew to, while they still grow: as they are, nothing is checked."""
    for folder, into in folders:
        found = " ".join(f"-name {shlex.quote(name)} -o" for name in names).removesuffix(" -o")
        listing = f"cd {shlex.quote(folder)} && find . -maxdepth 1 -type f \\( {found} \\) -printf '%s %P\\n'"
        lines = shell.run(listing, check=False, repeatable=True).out.splitlines()
        there = [File(name, int(size)) for size, _, name in (line.partition(" ") for line in lines)]
        grown = [file for file in there if _size(into / file.path) != file.size]
        if grown:
            _Unpacking(into, {file.path: file for file in grown}, checked=False).stream(shell, folder)


def _with_sums(shell: Shell, folder: str) -> list[File]:
    """The files there with size and SHA-256; result.json is the last one."""
    place = shlex.quote(folder)
    sums_of = f"find . {SKIPPED} -print0 | xargs -0r sha256sum -z"
    listing = f"test -d {place} || exit 0; cd {place} && find . {SKIPPED} -printf '%s %P\\0' && echo && {sums_of}"
    sizes, _, sums = shell.run(listing, timeout_s=TIMEOUT_S, repeatable=True).out.partition("\n")
    size_of = {path: int(size) for size, _, path in (entry.partition(" ") for entry in sizes.split("\0") if entry)}
    digests = {
        path.removeprefix("./"): digest for digest, _, path in (e.partition("  ") for e in sums.split("\0") if e)
    }
    files = [
        File(path, size, digests[path]) for path, size in size_of.items() if path in digests and path != PROGRESS_FILE
    ]
    return sorted(files, key=lambda file: (file.path == RESULT_FILE, file.path))


def _fetch(shell: Shell, folder: str, into: Path, missing: Sequence[File], watch: Watch) -> set[File]:
    """Fetch files; those that arrived as they are there."""
    told = _Told(missing, watch)
    begun = [file for file in missing if file.size >= RESUMED_BYTES and 0 < _size(_part(into, file)) < file.size]
    verified = {file for file in begun if _resumed(shell, folder, into, file, told)}
    whole = {file.path: file for file in missing if file not in begun}
    if whole:
        unpacking = _Unpacking(into, whole, told)
        unpacking.stream(shell, folder)
        verified |= unpacking.verified
    if len(verified) < len(missing):
        verified = {file for file in verified if file.path != RESULT_FILE}
    for file in sorted(verified, key=lambda file: file.path == RESULT_FILE):
        _part(into, file).replace(into / file.path)
    return verified


def _resumed(shell: Shell, folder: str, into: Path, file: File, told: "_Told") -> bool:
    part = _part(into, file)
    begin = _size(part)
    told.add(begin)

    with part.open("ab") as out:

        def keep(chunk: bytes) -> None:
            out.write(chunk)
            told.add(len(chunk))

        shell.stream(f"tail -c +{begin + 1} {shlex.quote(f'{folder}/{file.path}')}", keep, timeout_s=TIMEOUT_S)
    told.file()
    if file_sha256(part) == file.sha256:
        return True
    part.unlink()
    return False


class _Told:
    """Counts what arrives, for whoever watches."""

    def __init__(self, files: Sequence[File], watch: Watch) -> None:
        self._watch, self._began = watch, time.monotonic()
        self._files, self._of_files = 0, len(files)
        self._bytes, self._of_bytes = 0, sum(file.size for file in files)

    def add(self, count: int) -> None:
        self._bytes += count

    def file(self) -> None:
        self._files += 1
        passed_s = time.monotonic() - self._began
        left_s = passed_s * (self._of_bytes - self._bytes) / self._bytes if self._bytes else None
        self._watch(Arrived(self._files, self._of_files, self._bytes, self._of_bytes, left_s))


class _Unpacking:
    """One tar stream of ``wanted`` files into ``into``; anything else in it is passed over."""

    def __init__(self, into: Path, wanted: dict[str, File], told: "_Told | None" = None, checked: bool = True) -> None:
        self._into, self._wanted, self._checked = into, wanted, checked
        self._told = told or _Told([], lambda arrived: None)
        self._problem: Exception | None = None
        self.verified: set[File] = set()

    def stream(self, shell: Shell, folder: str) -> None:
        """Fetch them; NotReached when the line is cut, OSError when there is no room here."""
        read, write = os.pipe()
        with os.fdopen(read, "rb") as source, os.fdopen(write, "wb", buffering=0) as sink:
            unpacker = Thread(target=self._unpack, args=(source,), daemon=True)
            unpacker.start()
            names = "\0".join(self._wanted).encode()
            command = (
                f"cd {shlex.quote(folder)} && tar --create --null --no-recursion --files-from=- --ignore-failed-read"
            )
            try:
                shell.stream(command, sink.write, source=(names,), timeout_s=TIMEOUT_S)
            except BrokenPipeError:
                pass
            finally:
                sink.close()
                unpacker.join()
        if self._problem:
            raise self._problem

    def _unpack(self, source: BinaryIO) -> None:
        try:
            with tarfile.open(fileobj=source, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    content = archive.extractfile(member) if name in self._wanted else None
                    if content:
                        self._keep(content, self._wanted[name])
        except tarfile.ReadError:
            pass
        except OSError as problem:
            self._problem = problem
        finally:
            source.close()

    def _keep(self, content: IO[bytes], file: File) -> None:
        part = _part(self._into, file)
        part.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with part.open("wb") as out:
            while chunk := content.read(CHUNK):
                out.write(chunk)
                digest.update(chunk)
                self._told.add(len(chunk))
        self._told.file()
        if not self._checked:
            part.replace(self._into / file.path)
        elif digest.hexdigest() == file.sha256:
            self.verified.add(file)
        else:
            part.unlink()


def _part(into: Path, file: File) -> Path:
    path = into / file.path
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _same(path: Path, file: File) -> bool:
    return _size(path) == file.size and file_sha256(path) == file.sha256
