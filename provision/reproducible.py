"""Archives whose bytes depend only on the names, contents and modes of their files, and the commit of a checkout."""

import gzip
import io
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO


def write_archive(target: IO[bytes], root: Path, files: Iterable[Path]) -> None:
    """Write a .tar.gz of ``files`` with names relative to ``root``; owners, times and umasks do not affect it."""
    with (
        gzip.GzipFile("", "wb", fileobj=target, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(files):
            _add(archive, path, str(path.relative_to(root)))


def files_in(root: Path, parts: Iterable[str], left_out: Iterable[str]) -> list[Path]:
    """Return the files under ``parts`` of ``root``, except those in a folder whose name is in ``left_out``."""
    skipped = set(left_out)
    paths = (path for part in parts for path in ((root / part).rglob("*") if (root / part).is_dir() else [root / part]))
    return [path for path in paths if path.is_file() and not skipped & set(path.relative_to(root).parts)]


def archive_bytes(root: Path, files: Iterable[Path]) -> bytes:
    """Return the archive that ``write_archive`` writes."""
    target = io.BytesIO()
    write_archive(target, root, files)
    return target.getvalue()


def commit(checkout: Path) -> str:
    """Return the checkout's commit, with -dirty if files differ from it; '' outside a checkout."""
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip()


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.uname = entry.gname = "root"
    entry.size, entry.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
    with path.open("rb") as file:
        archive.addfile(entry, file)
