"""Write reproducible archives, and find the commit of a checkout.

The bytes of an archive depend only on the names and contents of its files, and on whether each is executable.
"""

import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO


def write_archive(target: IO[bytes], files: Mapping[str, Path]) -> None:
    """Write a .tar.gz. files: by the name in the archive, the path of each file.

    Owners, times and umask do not affect the bytes.
    """
    with (
        gzip.GzipFile("", "wb", fileobj=target, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, path in sorted(files.items()):
            _add_file(archive, path, name)


def archive_in_memory(files: Mapping[str, Path]) -> bytes:
    """Return the archive that ``write_archive`` writes."""
    target = io.BytesIO()
    write_archive(target, files)
    return target.getvalue()


def files_in(folder: Path, excluded: Collection[str]) -> list[Path]:
    """Return the files under ``folder``, except those in a folder whose name is in ``excluded``."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not set(excluded) & set(path.relative_to(folder).parts)]


def checkout_commit(checkout: Path) -> str:
    """Return the checkout's commit, with -dirty if files differ from it; '' outside a checkout or without git."""
    if not (checkout / ".git").exists() or not shutil.which("git"):  # site-packages may be inside another repository
        return ""
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip()


def _add_file(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.uname = entry.gname = "root"
    entry.size, entry.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
    with path.open("rb") as file:
        archive.addfile(entry, file)
