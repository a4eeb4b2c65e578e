"""The data of a run: nothing, a folder, or an archive that is fetched once, checked and unpacked into the cache."""

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.captions import FORMATS, format_of
from experiments.errors import InputError
from experiments.result import file_sha256

SYNTHETIC = "synthetic"
ARCHIVES = (".tar.gz", ".tgz", ".gz", ".tar", ".zip")
CHUNK_BYTES = 1 << 20
TRIES = 4
TIMEOUT_S = 60.0

Watch = Callable[[int, int | None], None]


@dataclass(frozen=True)
class DataSet:
    """Where the data is ('synthetic' or a folder), and the SHA-256 of its archive or of its folder's files."""

    data: str
    sha256: str | None = None


def cache_folder() -> Path:
    """Where downloads and unpacked archives are kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TESTBED_CACHE") or home / "llm-testbed")


def prepare(source: str, sha256: str | None, cache: Path, watch: Watch = lambda done, total: None) -> DataSet:
    """The data set that ``source`` means: 'synthetic', a folder, or the path or URL of an archive.

    ``watch`` is told of a download: bytes done, and in all where that is known. InputError when the source cannot be
    read, has no captions, has another checksum than ``sha256``, or is a URL without one.
    """
    if source == SYNTHETIC:
        if sha256:
            raise InputError("--data-sha256: synthetic data has no checksum; give --data too")
        return DataSet(SYNTHETIC)
    if re.match(r"https?://", source):
        if not sha256:
            raise InputError(f"--data {source}: a URL needs --data-sha256")
        unpacked = cache / "data" / sha256.lower()
        archive = None if unpacked.exists() else download(source, sha256.lower(), cache / "downloads", watch)
        return DataSet(str(_captions_in(unpacked if archive is None else unpack(archive, unpacked))), sha256.lower())
    path = Path(source)
    if path.is_dir():
        return _folder(path.resolve(), sha256)
    if not path.is_file():
        raise InputError(f"--data {source}: no such folder or archive")
    found = _checked_file(path, sha256)
    unpacked = cache / "data" / found
    return DataSet(str(_captions_in(unpacked if unpacked.exists() else unpack(path, unpacked))), found)


def download(url: str, sha256: str, folder: Path, watch: Watch) -> Path:
    """The archive at ``url``, going on where an earlier download broke off; a wrong checksum leaves nothing behind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (sha256 + _ending(url.partition("?")[0]))
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path if path.exists() else _downloaded(url, sha256, path, watch)


def unpack(archive: Path, folder: Path) -> Path:
    """``archive`` unpacked into ``folder``, which appears only when all of it is there.

    InputError when it is no archive, or would write outside the folder.
    """
    _ending(archive.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, partial)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
        _captions_in(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if folder.exists():
            return folder
        raise InputError(f"--data {archive}: cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _downloaded(url: str, sha256: str, path: Path, watch: Watch) -> Path:
    partial = path.with_name(path.name + ".part")
    for left in reversed(range(TRIES)):
        try:
            _fetch(url, partial, watch)
            break
        except urllib.error.HTTPError as error:
            raise InputError(f"--data {url}: the server answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            if not left:
                raise InputError(f"--data {url}: cannot be fetched ({error})") from None
            time.sleep(0.5)
    try:
        _checked_file(partial, sha256, url)
    except InputError:
        partial.unlink()
        raise
    return partial.replace(path)


def _folder(folder: Path, sha256: str | None) -> DataSet:
    try:
        next(folder.iterdir(), None)
        captions = _captions_in(folder)
        found = folder_sha256(captions)
    except OSError as error:
        raise InputError(f"--data {folder}: cannot be read ({error.strerror})") from None
    _check(found, sha256, str(folder))
    return DataSet(str(captions), found)


def _captions_in(folder: Path) -> Path:
    """The folder that has the captions: ``folder``, or the only folder in it."""
    inside = list(folder.iterdir())
    for place in (folder, *(inside if len(inside) == 1 and inside[0].is_dir() else ())):
        if format_of(place):
            return place
    raise InputError(f"--data {folder}: has no captions; a data folder has {FORMATS}")


def _fetch(url: str, partial: Path, watch: Watch) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:
            raise
        return
    with answer, partial.open("ab" if answer.status == 206 else "wb") as file:
        there = file.tell()
        length = answer.headers.get("Content-Length")
        total = there + int(length) if length else None
        while block := answer.read(CHUNK_BYTES):
            there += file.write(block)
            watch(there, total)
        if total is not None and there < total:
            raise ConnectionError(f"broke off after {there} of {total} bytes")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{name!r} would be written outside the folder")
        packed.extractall(folder)


def _ending(name: str) -> str:
    for ending in ARCHIVES:
        if name.endswith(ending):
            return ending
    raise InputError(f"--data {name}: not a folder or an archive; allowed: {', '.join(ARCHIVES)}")


def _checked_file(path: Path, sha256: str | None, name: str | None = None) -> str:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise InputError(f"--data {path}: cannot be read ({error.strerror})") from None
    _check(found, sha256, name or str(path))
    return found


def _check(found: str, wanted: str | None, name: str) -> None:
    if wanted and found != wanted.lower():
        raise InputError(f"--data {name}: its SHA-256 is {found}, and --data-sha256 says {wanted}")
