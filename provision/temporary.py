"""Temporary folders of this program. A folder that a killed process left behind is removed by the next process."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

PREFIX = "llm-testbed-"


class TemporaryFolder:
    """A new folder, removed with its content by ``remove`` or at the end of a with block.

    kind: the purpose of the folder, which becomes a part of its name. parent: None for the system's folder of temporary
    files. The process holds a lock on the folder until it removes the folder or ends. Other processes remove only
    folders that no process has locked.
    """

    def __init__(self, kind: str, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        self.path, self._lock = _make_folder(kind, parent)

    def remove(self) -> None:
        """Remove the folder and its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _make_folder(kind: str, parent: Path) -> tuple[Path, int]:
    """Return a new folder and its lock. If another process removes the folder before it is locked, make another one."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_dir():
                return path, lock
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user in ``parent`` that no process has locked."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), _open_lock(folder) as lock:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _open_lock(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
