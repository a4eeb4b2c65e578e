"""Recognize and unpack archives. Unpacking cannot write outside the target folder."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.formats import find_data_folder
from provision.temporary import TemporaryFolder

MAX_FILES = 5_000_000
MAX_RATIO = 200
"""Maximum unpacked size divided by the archive's size. This ratio is about 10 for texts, 1000 or more for zip bombs."""
ALWAYS_ALLOWED_BYTES = 1 << 28
"""Unpacked size up to which MAX_RATIO does not apply."""
MIN_FREE_BYTES = 1 << 28
"""Disk space that must stay free."""
TOO_LARGE = (
    f"the unpacked data would have more than {MAX_FILES} files, be more than {MAX_RATIO} times as large as the "
    "archive, or fill the disk"
)
DAMAGED_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)
"""Errors of the standard library for archives that are damaged, encrypted, or compressed in an unknown way."""
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".gz", ".tar", ".zip")


def archive_suffix(name: str) -> str:
    """Return the suffix of an archive's name. Raises InputError if it is not one of ARCHIVE_SUFFIXES."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise InputError(f"--data {name}: not a folder or an archive; allowed: {', '.join(ARCHIVE_SUFFIXES)}")


def unpack_archive(archive: Path, folder: Path, dataset: str) -> Path:
    """Unpack ``archive`` into ``folder``, which appears only when it is complete; return the folder.

    Raises InputError for a file that is not an archive, has no data for ``dataset``, would write outside the folder, or
    is too large.
    """
    archive_suffix(archive.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder("data", folder.parent) as partial:
        try:
            if archive.name.endswith(".zip"):
                _unzip(archive, partial)
            else:
                _untar(archive, partial)
            find_data_folder(partial, dataset)
            partial.chmod(0o755)
            partial.rename(folder)
        except InputError:
            raise
        except DAMAGED_ARCHIVE_ERRORS as error:
            if folder.exists():  # another process has unpacked the archive in the meantime
                return folder
            raise InputError(f"--data {archive}: cannot be unpacked ({' '.join(str(error).split())})") from None
    return folder


def _max_unpacked_bytes(archive: Path, folder: Path) -> int:
    """Return the maximum total size of the unpacked files, in bytes.

    It is MAX_RATIO times the archive's size, or ALWAYS_ALLOWED_BYTES if that is more, but no more than the disk has.
    """
    disk = shutil.disk_usage(folder).free - MIN_FREE_BYTES
    return min(disk, max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * archive.stat().st_size))


def _untar(archive: Path, folder: Path) -> None:
    """Unpack only files, folders and links. The filter of extractall, which also does this, needs Python 3.11.4."""
    remaining_bytes = _max_unpacked_bytes(archive, folder)
    with tarfile.open(archive) as packed:
        for number, member in enumerate(packed):
            remaining_bytes -= member.size if member.isfile() else 0
            if remaining_bytes < 0 or number >= MAX_FILES:
                raise tarfile.ReadError(TOO_LARGE)
            target = Path(member.name).parent / member.linkname if member.issym() else Path(member.linkname)
            if _is_outside(folder, member.name) or _is_outside(folder, target):
                raise tarfile.ReadError(f"{member.name!r} would be written outside the folder")
            if member.isfile() or member.isdir() or member.issym() or member.islnk():
                packed.extract(member, folder, set_attrs=False)


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > _max_unpacked_bytes(archive, folder):
            raise zipfile.BadZipFile(TOO_LARGE)
        for name in packed.namelist():
            if _is_outside(folder, name):
                raise zipfile.BadZipFile(f"{name!r} would be written outside the folder")
        packed.extractall(folder)  # noqa: S202 - all members are checked above


def _is_outside(folder: Path, name: str | Path) -> bool:
    return not (folder / name).resolve().is_relative_to(folder.resolve())
