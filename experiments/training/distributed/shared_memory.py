"""Remove shared-memory segments that killed ranks left behind."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - mounted by Linux
SEGMENT_PATTERNS = ("nccl-*", "torch_*")


def remove_shared_memory(newer_than: float, folder: Path = SHARED_MEMORY) -> None:
    """Remove shared-memory segments of NCCL and PyTorch that belong to this user and that no process maps.

    newer_than: only segments that were modified at this time or later are removed, in seconds since 1970.
    """
    segments = [
        path for pattern in SEGMENT_PATTERNS for path in folder.glob(pattern) if _is_own_segment(path, newer_than)
    ]
    if segments:
        mapped = _mapped_files()
        for path in segments:
            if str(path) not in mapped:
                path.unlink(missing_ok=True)


def _is_own_segment(path: Path, newer_than: float) -> bool:
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_uid == os.getuid() and status.st_mtime >= newer_than
    return False


def _mapped_files() -> set[str]:
    """Return the paths of all files that are mapped by a process."""
    paths: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            paths |= {mapping.path for mapping in process.memory_maps()}
    return paths
