"""Shared memory that killed ranks leave in the file system, where nobody maps it any more."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("nccl-*", "torch_*")


def remove_shared_memory(since: float, folder: Path = SHARED_MEMORY) -> None:
    """Remove this user's segments of NCCL and PyTorch made after ``since``, in seconds since 1970, that nobody maps."""
    made = [path for pattern in SEGMENTS for path in folder.glob(pattern) if _is_ours(path, since)]
    if made:
        mapped = _mapped()
        for path in made:
            if str(path) not in mapped:
                path.unlink(missing_ok=True)


def _is_ours(path: Path, since: float) -> bool:
    with suppress(FileNotFoundError):
        facts = path.stat()
        return facts.st_uid == os.getuid() and facts.st_mtime >= since
    return False


def _mapped() -> set[str]:
    """Every file that some process has in its address space."""
    found: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found |= {part.path for part in process.memory_maps()}
    return found
