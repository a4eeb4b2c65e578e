"""Bringing files home: what is missing or differs, in one stream, each checked by its SHA-256 there and here.

Checksums are made while files travel. A file is FILE.part until it has been checked; a large one that was cut off goes
on where it was. What was spoiled on the way is fetched again.
"""

import hashlib
import io
import re
import shlex
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from experiments.results.schema import CHECKPOINTS_FOLDER, PROGRESS_FILE, RESULT_FILE
from experiments.system.files import file_sha256
from provision.errors import NotReached
from provision.ssh.shell import Shell

TRIES = 3
CHUNK = 1 << 18
RESUMED_BYTES = 1 << 23
TIMEOUT_S = 3600.0
TELL_S = 0.25
LIST = (
    f"find . -name {CHECKPOINTS_FOLDER} -prune -o -type f ! -name '*.part' ! -path ./{PROGRESS_FILE} -printf '%s %P\\0'"
)
SUM = "if command -v openssl > /dev/null; then xargs -0r openssl dgst -sha256 -r; else xargs -0r sha256sum; fi"
TAR = "{ tar --create --null --no-recursion --files-from=- --ignore-failed-read || test $? = 1; }"
"""Its exit code 1 says that a file changed meanwhile; the checksums tell which."""
ESCAPED = re.compile(r"\\(.)")


class Spoiled(NotReached):
    """Files that arrive with another checksum each time."""


@dataclass(frozen=True)
class File:
    """A file there; its path is from the folder that is brought."""

    path: str
    size: int


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
    fetched: set[str] = set()
    spoiled: set[str] | None = None
    for _ in range(TRIES):
        there = [file for file in _listed(shell, folder) if spoiled is None or file.path in spoiled]
        wanted = there if spoiled else [file for file in there if not _held(into, file)]
        sums, digests = _fetched(shell, folder, into, there, wanted, watch)
        spoiled = {file.path for file in there if digests.get(file.path) != sums.get(file.path)}
        fetched |= {file.path for file in wanted} - spoiled
        _settle(into, [file for file in there if file.path != RESULT_FILE], spoiled)
        if not spoiled:
            _settle(into, [File(RESULT_FILE, 0)], spoiled)
            return len(fetched)
    raise Spoiled(f"{shell.where}: {min(spoiled or '?')} of {folder} arrives with another checksum each time")


def glance(shell: Shell, folders: Iterable[tuple[str, Path]], names: Sequence[str]) -> None:
    """Bring what files of these names grew to, while they still grow: as they are, nothing is checked."""
    for folder, into in folders:
        found = " ".join(f"-name {shlex.quote(name)} -o" for name in names).removesuffix(" -o")
        listing = f"cd {shlex.quote(folder)} && find . -maxdepth 1 -type f \\( {found} \\) -printf '%s %P\\0'"
        there = _files_in(shell.run(listing, check=False, repeatable=True).out)
        if grown := {file.path for file in there if _size(into / file.path) != file.size}:
            packed = io.BytesIO()
            shell.stream(_tar_of(folder), packed.write, source=_names(grown), timeout_s=TIMEOUT_S)
            packed.seek(0)
            with suppress(tarfile.ReadError):
                for name, content in _members(packed, grown):
                    _keep(content, into / name)
                    _part(into / name).replace(into / name)


def _listed(shell: Shell, folder: str) -> list[File]:
    """The files there."""
    place = shlex.quote(folder)
    return _files_in(shell.run(f"test -d {place} || exit 0; cd {place} && {LIST}", repeatable=True).out)


def _files_in(listing: str) -> list[File]:
    return [File(path, int(size)) for size, _, path in (entry.partition(" ") for entry in listing.split("\0") if entry)]


def _sums(shell: Shell, folder: str, files: Sequence[File]) -> dict[str, str]:
    """The SHA-256 of files, made there, by path; a file that cannot be read has none."""
    names = b"\0".join(f"./{file.path}".encode() for file in files)
    command = f"cd {shlex.quote(folder)} && {SUM}"
    said = shell.run(command, input=names, timeout_s=TIMEOUT_S, check=False, repeatable=True).out
    return dict(_sum_in(line) for line in said.splitlines())


def _sum_in(line: str) -> tuple[str, str]:
    """Path and digest of a line; a backslash before both says that the path's are escaped."""
    digest, path = line.removeprefix("\\")[:64], line.removeprefix("\\")[66:]
    if line.startswith("\\"):
        path = ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], path)
    return path.removeprefix("./"), digest


def _fetched(
    shell: Shell, folder: str, into: Path, there: Sequence[File], wanted: Sequence[File], watch: Watch
) -> tuple[dict[str, str], dict[str, str]]:
    """The checksums of all files there, and of what is here of them after those that are wanted were fetched."""
    with ThreadPoolExecutor(1) as beside:
        sums = beside.submit(_sums, shell, folder, there) if there else None
        digests = _fetch(shell, folder, into, wanted, watch) if wanted else {}
        for file in set(there) - set(wanted):
            if held := _held(into, file):
                digests[file.path] = file_sha256(held)
        return sums.result() if sums else {}, digests


def _fetch(shell: Shell, folder: str, into: Path, wanted: Sequence[File], watch: Watch) -> dict[str, str]:
    """Fetch files, each to its FILE.part; the SHA-256 of what arrived, by path."""
    told = _Told(wanted, watch)
    begun = [file for file in wanted if file.size >= RESUMED_BYTES and 0 < _size(_part(into / file.path)) < file.size]
    digests = {file.path: _resumed(shell, f"{folder}/{file.path}", into / file.path, told) for file in begun}
    if whole := {file.path for file in wanted} - digests.keys():
        reading = shell.reading(_tar_of(folder), source=_names(whole), timeout_s=TIMEOUT_S)
        with reading as stream, suppress(tarfile.ReadError):
            for name, content in _members(stream, whole):
                digests[name] = _keep(content, into / name, told)
    return digests


def _resumed(shell: Shell, remote: str, path: Path, told: "_Told") -> str:
    """Go on with a file where it was cut off; its SHA-256."""
    part = _part(path)
    begin = _size(part)
    told.add(begin)
    command = f"tail -c +{begin + 1} {shlex.quote(remote)}"
    with part.open("ab") as out, shell.reading(command, timeout_s=TIMEOUT_S) as stream:
        while chunk := stream.read(CHUNK):
            out.write(chunk)
            told.add(len(chunk))
    told.file()
    return file_sha256(part)


def _settle(into: Path, files: Sequence[File], spoiled: set[str]) -> None:
    """Give what arrived its name, and remove what is spoiled."""
    for file in files:
        part = _part(into / file.path)
        if file.path in spoiled:
            part.unlink(missing_ok=True)
        elif part.exists():
            part.replace(into / file.path)


class _Told:
    """Counts what arrives, for whoever watches: at the end of each file, and now and then."""

    def __init__(self, files: Sequence[File], watch: Watch = lambda arrived: None) -> None:
        self._watch = watch
        self._began = self._said = time.monotonic()
        self._files, self._of_files = 0, len(files)
        self._bytes, self._of_bytes = 0, sum(file.size for file in files)

    def add(self, count: int) -> None:
        self._bytes += count
        if time.monotonic() - self._said > TELL_S:
            self._say()

    def file(self) -> None:
        self._files += 1
        self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        passed_s = self._said - self._began
        left_s = passed_s * (self._of_bytes - self._bytes) / self._bytes if self._bytes else None
        self._watch(Arrived(self._files, self._of_files, self._bytes, self._of_bytes, left_s))


def _tar_of(folder: str) -> str:
    return f"cd {shlex.quote(folder)} && {TAR}"


def _names(paths: Iterable[str]) -> tuple[bytes]:
    return ("\0".join(f"./{path}" for path in sorted(paths, key=lambda path: (path == RESULT_FILE, path))).encode(),)


def _members(stream: IO[bytes], wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of the wanted files of a tar stream, nothing else of it. ReadError where it is torn."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            content = archive.extractfile(member) if name in wanted else None
            if content:
                yield name, content


def _keep(content: IO[bytes], path: Path, told: _Told | None = None) -> str:
    """Write FILE.part; the SHA-256 of what was written."""
    part = _part(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with part.open("wb") as out:
        while chunk := content.read(CHUNK):
            out.write(chunk)
            digest.update(chunk)
            if told:
                told.add(len(chunk))
    if told:
        told.file()
    return digest.hexdigest()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _held(into: Path, file: File) -> Path | None:
    """What is here of a file in its full size: arrived but unchecked, or settled."""
    path = into / file.path
    return next((held for held in (_part(path), path) if _size(held) == file.size), None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
