"""Archives: which are known, and how they are unpacked without writing outside their folder."""

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.formats import data_folder_in

ARCHIVES = (".tar.gz", ".tgz", ".gz", ".tar", ".zip")


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
        data_folder_in(partial, dataset)
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
