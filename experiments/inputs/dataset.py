"""Prepare the data of a run: synthetic data, published texts, a folder, or an archive.

An archive is downloaded once and verified.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.archive import archive_suffix, unpack_archive
from experiments.inputs.download import DownloadCallback, check_sha256, download, file_checksum, is_url
from experiments.inputs.formats import find_data_folder
from experiments.inputs.requirements import CAPTIONS_DATASET, CONSTANT_DATASET, Artifact
from experiments.suites.choices import HUB, SYNTHETIC
from experiments.system.files import file_sha256


@dataclass(frozen=True)
class DataSet:
    """The data of a run. data: 'synthetic', 'hub' or the path of a folder.

    sha256: checksum of the archive or of the folder's files. artifact: data that the cluster must download first.
    user_path: the user's archive or folder that must be uploaded to the cluster.
    """

    data: str
    sha256: str | None = None
    artifact: Artifact | None = None
    user_path: Path | None = None


def prepare_dataset(
    source: str,
    sha256: str | None,
    cache: Path,
    datasets: Collection[str],
    on_progress: DownloadCallback = lambda done, total: None,
) -> DataSet:
    """Return the data set of ``source``: 'synthetic', 'hub', a folder, or the path or URL of an archive.

    sha256: expected checksum of the source; None: unknown. datasets: names of the data sets that the run's rows read.
    on_progress: called during a download with the number of downloaded bytes and the total number of bytes.

    Raises InputError if the rows do not read exactly one data set that is not synthetic. Also raises it if the source
    is unreadable, has no data for the rows, has another checksum than ``sha256``, or is a URL without a checksum.
    """
    dataset = _check_source(source, sha256, datasets)
    if source in (SYNTHETIC, HUB):
        return DataSet(source)
    if is_url(source):
        assert sha256, "a URL needs a checksum"
        unpacked = cache / "data" / sha256.lower()
        archive = None if unpacked.exists() else download(source, sha256.lower(), cache / "downloads", on_progress)
        folder = unpacked if archive is None else unpack_archive(archive, unpacked, dataset)
        return DataSet(str(find_data_folder(folder, dataset)), sha256.lower())
    path = Path(source)
    if path.is_dir():
        return _open_folder(path.resolve(), sha256, dataset)
    if not path.is_file():
        raise InputError(f"--data {source}: no such folder or archive")
    digest = file_checksum(path, sha256)
    unpacked = cache / "data" / digest
    folder = unpacked if unpacked.exists() else unpack_archive(path, unpacked, dataset)
    return DataSet(str(find_data_folder(folder, dataset)), digest)


def prepare_remote_dataset(source: str, sha256: str | None, cache: str, datasets: Collection[str]) -> DataSet:
    """Return the data set of ``source`` on a cluster whose cache folder is ``cache``; see ``prepare_dataset``.

    Nothing is downloaded or uploaded yet.
    """
    dataset = _check_source(source, sha256, datasets)
    if source in (SYNTHETIC, HUB):
        return DataSet(source)
    user_path, digest = None, (sha256 or "").lower()
    if not is_url(source):
        user_path, path = Path(source), Path(source)
        if path.is_dir():
            local = _open_folder(path.resolve(), sha256, dataset)
            user_path, digest = Path(local.data), local.sha256 or ""
        elif path.is_file():
            digest = file_checksum(path, sha256)
        else:
            raise InputError(f"--data {source}: no such folder or archive")
    suffix = ".tar" if user_path and user_path.is_dir() else archive_suffix(source.partition("?")[0])
    name = f"{cache}/downloads/{digest}{suffix}" if user_path else source
    artifact = Artifact(kind="data", name=name, sha256=digest, dataset=dataset)
    return DataSet(f"{cache}/data/{digest}-{dataset}", digest, artifact, user_path)


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files in a folder, as a hexadecimal string."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _check_source(source: str, sha256: str | None, datasets: Collection[str]) -> str:
    """Return the name of the data set to read from ``source``; '' for synthetic data.

    Raises InputError for invalid options.
    """
    if source in (SYNTHETIC, HUB) and sha256:
        raise InputError(f"--data-sha256: not allowed with --data {source}; allowed with a folder or an archive")
    if source == SYNTHETIC:
        return ""
    dataset = _single_real_dataset(datasets, source)
    if source == HUB and dataset == CAPTIONS_DATASET:
        raise InputError(
            f"--data hub: {dataset} is not on the Hugging Face hub; allowed: synthetic, a folder, an archive"
        )
    if is_url(source) and not sha256:
        raise InputError(f"--data {source}: a URL needs --data-sha256")
    return dataset


def _single_real_dataset(datasets: Collection[str], source: str) -> str:
    """Return the only data set among ``datasets`` that is not synthetic. Raises InputError if none or several are."""
    real = sorted({*datasets} - {CONSTANT_DATASET})
    if not real:
        raise InputError(f"--data {source}: the requested rows read synthetic texts only; allowed: synthetic")
    if len(real) > 1:
        raise InputError(
            f"--data {source}: the requested rows read {' and '.join(real)}"
            "; with --row, choose rows that read the same data set"
        )
    return real[0]


def _open_folder(folder: Path, sha256: str | None, dataset: str) -> DataSet:
    try:
        next(folder.iterdir(), None)
        data_folder = find_data_folder(folder, dataset)
        digest = folder_sha256(data_folder)
    except OSError as error:
        raise InputError(f"--data {folder}: cannot be read ({error.strerror})") from None
    check_sha256(digest, sha256, str(folder))
    return DataSet(str(data_folder), digest)
