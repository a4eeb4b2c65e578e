"""The build context of an image, as one archive: the same files give the same bytes, wherever and whenever.

A checkout has the playbook in ansible/ and the image's recipe in containers/, at its top; in an installed package both
are in provision/files/.
"""

import gzip
import subprocess
import tarfile
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PARTS = ("containers", "experiments", "provision")
LEFT_OUT = ("experiments/evidence", "provision/files")


def data_folder(name: str, project: Path = PROJECT) -> Path:
    """Return the folder ``ansible`` or ``containers``: an installed package's own, else the checkout's."""
    installed = project / "provision" / "files" / name
    return installed if installed.is_dir() else project / name


def pack(archive: Path, project: Path = PROJECT) -> None:
    """Write the build's context to ``archive``, a .tar.gz."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for part in PARTS:
            tar.add(data_folder(part, project), part, filter=_plain)


def commit(project: Path = PROJECT) -> str:
    """The checkout's commit, with -dirty where files differ from it; empty outside a checkout."""
    if not (project / ".git").exists():  # an environment can lie in somebody's repository
        return ""
    describe = ["git", "-C", str(project), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file without what differs between checkouts: owner, time, and whatever umask there was."""
    if member.name in LEFT_OUT or "__pycache__" in Path(member.name).parts:
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
