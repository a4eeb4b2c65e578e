"""The data of a run: none, a published set, a folder, or an archive that is fetched once, checked and unpacked."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.archive import _ending, unpack
from experiments.inputs.download import Watch, _check, _checked_file, download, is_url
from experiments.inputs.formats import data_folder_in
from experiments.inputs.requirements import CAPTIONS, MADE_UP, Need
from experiments.suites.choices import HUB, SYNTHETIC
from experiments.system.files import file_sha256


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
        return DataSet(str(data_folder_in(folder, dataset)), sha256.lower())
    path = Path(source)
    if path.is_dir():
        return _folder(path.resolve(), sha256, dataset)
    if not path.is_file():
        raise InputError(f"--data {source}: no such folder or archive")
    found = _checked_file(path, sha256)
    unpacked = cache / "data" / found
    folder = unpacked if unpacked.exists() else unpack(path, unpacked, dataset)
    return DataSet(str(data_folder_in(folder, dataset)), found)


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


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


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
        place = data_folder_in(folder, dataset)
        found = folder_sha256(place)
    except OSError as error:
        raise InputError(f"--data {folder}: cannot be read ({error.strerror})") from None
    _check(found, sha256, str(folder))
    return DataSet(str(place), found)
