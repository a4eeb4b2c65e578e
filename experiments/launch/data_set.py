"""The data of a run: none, a published set, a folder, or an archive that is fetched once, checked and unpacked."""

import fcntl
import hashlib
import http.client
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from experiments import captions, texts
from experiments.errors import InputError
from experiments.needs import CAPTIONS, HUB, MADE_UP, SYNTHETIC, Need
from experiments.result import file_sha256

ARCHIVES = (".tar.gz", ".tgz", ".gz", ".tar", ".zip")
CHUNK_BYTES = 1 << 20
TRIES = 4
TIMEOUT_S = 60.0

Watch = Callable[[int, int | None], None]


@dataclass(frozen=True)
class DataSet:
    """Where the data is ('synthetic', 'hub' or a folder), and the SHA-256 of its archive or of its folder's files.

    need: what has to be fetched before it is there. own: the person's archive or folder that is to be put there for it.
    """

    data: str
    sha256: str | None = None
    need: Need | None = None
    own: Path | None = None


def prepare(
    source: str,
    sha256: str | None,
    cache: Path,
    datasets: Collection[str],
    watch: Watch = lambda done, total: None,
) -> DataSet:
    """The data set that ``source`` means: 'synthetic', 'hub', a folder, or the path or URL of an archive.

    datasets: those of the run's rows, by their names in the recipe. ``watch`` is told of a download: bytes done, and in
    all where that is known. InputError when the rows do not read one real set, or the source cannot be read, has
    nothing for them, has another checksum than ``sha256``, or is a URL without one.
    """
    dataset = _named(source, sha256, datasets)
    if source in (SYNTHETIC, HUB):
        return DataSet(source)
    if is_url(source):
        assert sha256, "a URL has its checksum"
        unpacked = cache / "data" / sha256.lower()
        archive = None if unpacked.exists() else download(source, sha256.lower(), cache / "downloads", watch)
        folder = unpacked if archive is None else unpack(archive, unpacked, dataset)
        return DataSet(str(place_in(folder, dataset)), sha256.lower())
    path = Path(source)
    if path.is_dir():
        return _folder(path.resolve(), sha256, dataset)
    if not path.is_file():
        raise InputError(f"--data {source}: no such folder or archive")
    found = _checked_file(path, sha256)
    unpacked = cache / "data" / found
    folder = unpacked if unpacked.exists() else unpack(path, unpacked, dataset)
    return DataSet(str(place_in(folder, dataset)), found)


def prepare_there(source: str, sha256: str | None, cache: str, datasets: Collection[str]) -> DataSet:
    """The same of a cluster with the cache folder ``cache``: nothing is fetched yet, and nothing put there."""
    dataset = _named(source, sha256, datasets)
    if source in (SYNTHETIC, HUB):
        return DataSet(source)
    own, found = None, (sha256 or "").lower()
    if not is_url(source):
        own, path = Path(source), Path(source)
        if path.is_dir():
            kept = _folder(path.resolve(), sha256, dataset)
            own, found = Path(kept.data), kept.sha256 or ""
        elif path.is_file():
            found = _checked_file(path, sha256)
        else:
            raise InputError(f"--data {source}: no such folder or archive")
    ending = ".tar" if own and own.is_dir() else _ending(source.partition("?")[0])
    name = f"{cache}/downloads/{found}{ending}" if own else source
    need = Need(kind="data", name=name, sha256=found, dataset=dataset)
    return DataSet(f"{cache}/data/{found}-{dataset}", found, need, own)


def is_url(source: str) -> bool:
    return re.match(r"https?://", source) is not None


def download(url: str, sha256: str, folder: Path, watch: Watch) -> Path:
    """The archive at ``url``, going on where an earlier download broke off; a wrong checksum leaves nothing behind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (sha256 + _ending(url.partition("?")[0]))
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path if path.exists() else _downloaded(url, sha256, path, watch)


def unpack(archive: Path, folder: Path, dataset: str) -> Path:
    """``archive`` unpacked into ``folder``, which appears only when all of it is there.

    InputError when it is no archive, has nothing for ``dataset``, or would write outside the folder.
    """
    _ending(archive.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, partial)
        else:
            _untar(archive, partial)
        place_in(partial, dataset)
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


def _named(source: str, sha256: str | None, datasets: Collection[str]) -> str:
    """The data set that ``source`` is to be, '' where data is made up; InputError for what cannot be read so."""
    if source in (SYNTHETIC, HUB) and sha256:
        raise InputError(f"--data-sha256: data {source} has no checksum; allowed: with a folder or an archive")
    if source == SYNTHETIC:
        return ""
    dataset = _one_of(datasets, source)
    if source == HUB and dataset == CAPTIONS:
        raise InputError(f"--data hub: {dataset} is not published there; allowed: synthetic, a folder, an archive")
    if is_url(source) and not sha256:
        raise InputError(f"--data {source}: a URL needs --data-sha256")
    return dataset


def _one_of(datasets: Collection[str], source: str) -> str:
    """The data set that the run's rows read beside made-up texts; InputError when it is not one."""
    read = sorted({*datasets} - {MADE_UP})
    if not read:
        raise InputError(f"--data {source}: the texts of these rows are made up; allowed: synthetic")
    if len(read) > 1:
        raise InputError(f"--data {source}: these rows read {' and '.join(read)}; choose rows of one of them by --row")
    return read[0]


def _folder(folder: Path, sha256: str | None, dataset: str) -> DataSet:
    try:
        next(folder.iterdir(), None)
        place = place_in(folder, dataset)
        found = folder_sha256(place)
    except OSError as error:
        raise InputError(f"--data {folder}: cannot be read ({error.strerror})") from None
    _check(found, sha256, str(folder))
    return DataSet(str(place), found)


def place_in(folder: Path, dataset: str) -> Path:
    """The folder that has records of ``dataset``: ``folder``, or the only folder in it; InputError for neither."""
    what, has, formats = (
        ("captions", captions.format_of, captions.FORMATS)
        if dataset == CAPTIONS
        else ("texts", texts.format_of, texts.FORMATS)
    )
    inside = list(folder.iterdir())
    for place in (folder, *(inside if len(inside) == 1 and inside[0].is_dir() else ())):
        if has(place):
            return place
    raise InputError(f"--data {folder}: has no {what}; a data folder for {dataset} has {formats}")


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


def _untar(archive: Path, folder: Path) -> None:
    """Its files, folders and links, nothing else; extractall's filter for that came with Python 3.11.4."""
    with tarfile.open(archive) as packed:
        for member in packed:
            target = Path(member.name).parent / member.linkname if member.issym() else Path(member.linkname)
            if _leads_out(folder, member.name) or _leads_out(folder, target):
                raise tarfile.ReadError(f"{member.name!r} would be written outside the folder")
            if member.isfile() or member.isdir() or member.issym() or member.islnk():
                packed.extract(member, folder, set_attrs=False)


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            if _leads_out(folder, name):
                raise zipfile.BadZipFile(f"{name!r} would be written outside the folder")
        packed.extractall(folder)


def _leads_out(folder: Path, name: str | Path) -> bool:
    return not (folder / name).resolve().is_relative_to(folder.resolve())


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
