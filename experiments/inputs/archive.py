"""Recognize and unpack archives. Unpacking cannot write outside the target folder."""

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.formats import find_data_folder

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".gz", ".tar", ".zip")


def archive_suffix(name: str) -> str:
    """Return the suffix of an archive's name. Raises InputError if it is not one of ARCHIVE_SUFFIXES."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise InputError(f"--data {name}: not a folder or an archive; allowed: {', '.join(ARCHIVE_SUFFIXES)}")


def unpack_archive(archive: Path, folder: Path, dataset: str) -> Path:
    """Unpack ``archive`` into ``folder``, which appears only when it is complete; return the folder.

    Raises InputError for a file that is not an archive, has no data for ``dataset``, or would write outside the folder.
    """
    archive_suffix(archive.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, partial)
        else:
            _untar(archive, partial)
        find_data_folder(partial, dataset)
        partial.chmod(0o755)
        partial.rename(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if folder.exists():
            return folder
        raise InputError(f"--data {archive}: cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _untar(archive: Path, folder: Path) -> None:
    """Unpack only files, folders and links. The filter of extractall does the same, but only since Python 3.11.4."""
    with tarfile.open(archive) as packed:
        for member in packed:
            target = Path(member.name).parent / member.linkname if member.issym() else Path(member.linkname)
            if _is_outside(folder, member.name) or _is_outside(folder, target):
                raise tarfile.ReadError(f"{member.name!r} would be written outside the folder")
            if member.isfile() or member.isdir() or member.issym() or member.islnk():
                packed.extract(member, folder, set_attrs=False)


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            if _is_outside(folder, name):
                raise zipfile.BadZipFile(f"{name!r} would be written outside the folder")
        packed.extractall(folder)


def _is_outside(folder: Path, name: str | Path) -> bool:
    return not (folder / name).resolve().is_relative_to(folder.resolve())
