"""Download folders from a cluster: all files that are missing or differ, in one tar stream.

During the transfer, SHA-256 checksums are computed on both machines and then compared. A file has the name FILE.part
until it has been verified. The download of a large file is resumed after an interruption. A file with a checksum
mismatch is downloaded again.
"""

import hashlib
import io
import re
import shlex
import tarfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from experiments.results.schema import CHECKPOINTS_FOLDER, PROGRESS_FILE, RESULT_FILE
from experiments.system.files import file_sha256
from provision.errors import NotReached
from provision.ssh.shell import Shell

MAX_TRIES = 3
CHUNK_BYTES = 1 << 18
MIN_RESUMED_BYTES = 1 << 23
"""Minimum size of a file whose interrupted download is resumed. A smaller file is downloaded again from its start."""
MAX_BYTES_WITHOUT_NEW_CONNECTION = 1 << 18
"""Files of at most this size in total are downloaded through the open connection.

To open a new connection would take longer than to download them.
"""
DOWNLOAD_TIMEOUT_S = 3600.0
PROGRESS_INTERVAL_S = 0.25
LIST_COMMAND = (
    f"find . -name {CHECKPOINTS_FOLDER} -prune -o -type f ! -name '*.part' ! -path ./{PROGRESS_FILE} -printf '%s %P\\0'"
)
CHECKSUM_COMMAND = (
    "if command -v openssl > /dev/null; then xargs -0r openssl dgst -sha256 -r; else xargs -0r sha256sum; fi"
)
TAR_COMMAND = "{ tar --create --null --no-recursion --files-from=- --ignore-failed-read || test $? = 1; }"
"""tar's exit code 1 means that a file changed while tar read it. The checksums show which file."""
ESCAPED = re.compile(r"\\(.)")


class ChecksumMismatch(NotReached):
    """All attempts to download a file gave a wrong checksum."""


class BadListing(ChecksumMismatch):
    """The list of a remote folder's files is malformed, or names a file outside of the folder."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in the remote folder; ``path`` is relative to the folder."""

    path: str
    size: int


@dataclass(frozen=True)
class TransferProgress:
    """Progress of a download: files and bytes so far, and in total; left_s: time left in seconds, None if unknown."""

    files: int
    total_files: int
    bytes: int
    total_bytes: int
    left_s: float | None


TransferCallback = Callable[[TransferProgress], None]


def download_folder(
    shell: Shell, folder: str, local_folder: Path, on_progress: TransferCallback = lambda progress: None
) -> int:
    """Download the remote folder ``folder`` into ``local_folder``; return the number of downloaded files.

    The file result.json is downloaded last. on_progress: called after each part of a download. Checkpoints and files
    that are still being written are left out. Raises ChecksumMismatch if a file cannot be downloaded intact, and
    NotReached if the connection drops; the next call resumes.
    """
    downloaded: set[str] = set()
    damaged: set[str] | None = None
    for _ in range(MAX_TRIES):
        remote = [file for file in _list_files(shell, folder) if damaged is None or file.path in damaged]
        missing = remote if damaged else [file for file in remote if not _local_copy(local_folder, file)]
        expected, actual = _download_and_sum(shell, folder, local_folder, remote, missing, on_progress)
        damaged = {file.path for file in remote if actual.get(file.path) != expected.get(file.path)}
        downloaded |= {file.path for file in missing} - damaged
        _finish_parts(local_folder, [file for file in remote if file.path != RESULT_FILE], damaged)
        if not damaged:
            _finish_parts(local_folder, [RemoteFile(RESULT_FILE, 0)], damaged)
            return len(downloaded)
    raise ChecksumMismatch(f"{shell.where}: checksum mismatch in each download of {min(damaged or '?')} from {folder}")


def download_growing_files(shell: Shell, folders: Iterable[tuple[str, Path]], names: Sequence[str]) -> None:
    """Download the files with these names whose size has changed since the last download.

    Checksums are not compared, because rows still write to these files. folders: pairs of a remote and a local folder.
    """
    for folder, local_folder in folders:
        tests = " ".join(f"-name {shlex.quote(name)} -o" for name in names).removesuffix(" -o")
        listing = f"cd {shlex.quote(folder)} && find . -maxdepth 1 -type f \\( {tests} \\) -printf '%s %P\\0'"
        remote = _parse_listing(shell, folder, shell.run(listing, check=False, repeatable=True).out)
        if grown := {file.path for file in remote if _file_size(local_folder / file.path) != file.size}:
            with suppress(tarfile.ReadError):
                for name, content in _members(_download_tar(shell, folder, grown), grown):
                    _write_part(content, local_folder / name)
                    _part_file(local_folder / name).replace(local_folder / name)


def _list_files(shell: Shell, folder: str) -> list[RemoteFile]:
    quoted = shlex.quote(folder)
    listing = shell.run(f"test -d {quoted} || exit 0; cd {quoted} && {LIST_COMMAND}", repeatable=True).out
    return _parse_listing(shell, folder, listing)


def _parse_listing(shell: Shell, folder: str, listing: str) -> list[RemoteFile]:
    """Return the files of a list. Raises BadListing for a path that would be written outside of the local folder."""
    entries = [entry.partition(" ") for entry in listing.split("\0") if entry]
    for size, _, path in entries:
        if not (size.isdecimal() and path) or path.startswith("/") or ".." in path.split("/"):
            raise BadListing(
                f"{shell.where}: {folder} lists {f'{size} {path}'[:100]!r}, which is not a file in this folder"
            )
    return [RemoteFile(path, int(size)) for size, _, path in entries]


def _remote_sums(shell: Shell, folder: str, files: Sequence[RemoteFile]) -> dict[str, str]:
    """Return the SHA-256 of remote files, by path. Unreadable files are left out."""
    names = b"\0".join(f"./{file.path}".encode() for file in files)
    command = f"cd {shlex.quote(folder)} && {CHECKSUM_COMMAND}"
    output = shell.run(command, input=names, timeout_s=DOWNLOAD_TIMEOUT_S, check=False, repeatable=True).out
    return dict(_parse_sum(line) for line in output.splitlines())


def _parse_sum(line: str) -> tuple[str, str]:
    """Return path and checksum from an output line. A backslash at the start of the line: the path is escaped."""
    digest, path = line.removeprefix("\\")[:64], line.removeprefix("\\")[66:]
    if line.startswith("\\"):
        path = ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], path)
    return path.removeprefix("./"), digest


def _download_and_sum(
    shell: Shell,
    folder: str,
    local_folder: Path,
    remote: Sequence[RemoteFile],
    wanted: Sequence[RemoteFile],
    on_progress: TransferCallback,
) -> tuple[dict[str, str], dict[str, str]]:
    """Download the wanted files; return the checksums of all remote files and of their local copies."""
    with ThreadPoolExecutor(1) as executor:
        expected = executor.submit(_remote_sums, shell, folder, remote) if remote else None
        actual = _download(shell, folder, local_folder, wanted, on_progress) if wanted else {}
        for file in set(remote) - set(wanted):
            if local := _local_copy(local_folder, file):
                actual[file.path] = file_sha256(local)
        return expected.result() if expected else {}, actual


def _download(
    shell: Shell, folder: str, local_folder: Path, wanted: Sequence[RemoteFile], on_progress: TransferCallback
) -> dict[str, str]:
    """Download files, each to its FILE.part; return the SHA-256 of the downloaded bytes, by path."""
    counter = _TransferCounter(wanted, on_progress)
    partial = [
        file
        for file in wanted
        if file.size >= MIN_RESUMED_BYTES and 0 < _file_size(_part_file(local_folder / file.path)) < file.size
    ]
    sums = {file.path: _resume(shell, f"{folder}/{file.path}", local_folder / file.path, counter) for file in partial}
    if whole := {file.path: file.size for file in wanted if file.path not in sums}:
        with _open_tar(shell, folder, whole) as stream, suppress(tarfile.ReadError):
            for name, content in _members(stream, whole.keys()):
                sums[name] = _write_part(content, local_folder / name, counter)
    return sums


def _resume(shell: Shell, remote: str, path: Path, counter: "_TransferCounter") -> str:
    """Resume the interrupted download of a file; return its SHA-256."""
    part = _part_file(path)
    begin = _file_size(part)
    counter.add(begin)
    command = f"tail -c +{begin + 1} {shlex.quote(remote)}"
    with part.open("ab") as out, shell.open_output(command, timeout_s=DOWNLOAD_TIMEOUT_S) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            out.write(chunk)
            counter.add(len(chunk))
    counter.finish_file()
    return file_sha256(part)


def _finish_parts(local_folder: Path, files: Sequence[RemoteFile], damaged: set[str]) -> None:
    """Rename FILE.part to FILE for each intact file, and remove FILE.part for each damaged one."""
    for file in files:
        part = _part_file(local_folder / file.path)
        if file.path in damaged:
            part.unlink(missing_ok=True)
        elif part.exists():
            part.replace(local_folder / file.path)


class _TransferCounter:
    """Counts downloaded bytes; reports at the end of each file, and every PROGRESS_INTERVAL_S."""

    def __init__(self, files: Sequence[RemoteFile], on_progress: TransferCallback) -> None:
        self._on_progress = on_progress
        self._began = self._reported = time.monotonic()
        self._files, self._total_files = 0, len(files)
        self._bytes, self._total_bytes = 0, sum(file.size for file in files)

    def add(self, count: int) -> None:
        self._bytes += count
        if time.monotonic() - self._reported > PROGRESS_INTERVAL_S:
            self._report()

    def finish_file(self) -> None:
        self._files += 1
        self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        elapsed_s = self._reported - self._began
        left_s = elapsed_s * (self._total_bytes - self._bytes) / self._bytes if self._bytes else None
        self._on_progress(TransferProgress(self._files, self._total_files, self._bytes, self._total_bytes, left_s))


def _tar_command(folder: str) -> str:
    return f"cd {shlex.quote(folder)} && {TAR_COMMAND}"


def _file_list(paths: Iterable[str]) -> tuple[bytes]:
    """Return the input of TAR_COMMAND: paths separated by NUL, with result.json as the last one."""
    return ("\0".join(f"./{path}" for path in sorted(paths, key=lambda path: (path == RESULT_FILE, path))).encode(),)


@contextmanager
def _open_tar(shell: Shell, folder: str, sizes: Mapping[str, int]) -> Iterator[IO[bytes]]:
    """Yield a tar stream of remote files. sizes: the size of each file in bytes, by path."""
    if sum(sizes.values()) <= MAX_BYTES_WITHOUT_NEW_CONNECTION:
        yield _download_tar(shell, folder, sizes)
        return
    source = _file_list(sizes)
    with shell.open_output(_tar_command(folder), source=source, timeout_s=DOWNLOAD_TIMEOUT_S) as stream:
        yield stream


def _download_tar(shell: Shell, folder: str, paths: Iterable[str]) -> IO[bytes]:
    """Return a tar archive of files, downloaded through the open connection."""
    packed = io.BytesIO()
    shell.stream(_tar_command(folder), packed.write, source=_file_list(paths), timeout_s=DOWNLOAD_TIMEOUT_S)
    packed.seek(0)
    return packed


def _members(stream: IO[bytes], wanted: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of the wanted files in a tar stream. Raises ReadError if the stream is truncated."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK_BYTES) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            content = archive.extractfile(member) if name in wanted else None
            if content:
                yield name, content


def _write_part(content: IO[bytes], path: Path, counter: _TransferCounter | None = None) -> str:
    """Write FILE.part; return the SHA-256 of its content."""
    part = _part_file(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with part.open("wb") as out:
        while chunk := content.read(CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            if counter:
                counter.add(len(chunk))
    if counter:
        counter.finish_file()
    return digest.hexdigest()


def _part_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _local_copy(local_folder: Path, file: RemoteFile) -> Path | None:
    """Return the path of a file's local copy, verified or not, if it has the size of the file; otherwise None."""
    path = local_folder / file.path
    return next((local for local in (_part_file(path), path) if _file_size(local) == file.size), None)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
