"""What an image is built from, as one archive: the same files give the same bytes, wherever and whenever."""

import gzip
import subprocess
import tarfile
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PARTS = ("containers", "experiments", "provision", "pyproject.toml", "README.md")
LEFT_OUT = {"__pycache__"}


def pack(archive: Path, project: Path = PROJECT) -> None:
    """Write the build's context to ``archive``, a .tar.gz."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for part in PARTS:
            tar.add(project / part, part, filter=_plain)


def commit(project: Path = PROJECT) -> str:
    """The checkout's commit, with -dirty where files differ from it; empty outside a checkout."""
    describe = ["git", "-C", str(project), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file without what differs between checkouts: owner, time, and whatever umask there was."""
    if LEFT_OUT & set(Path(member.name).parts):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
