"""Lock folders. Linux releases a lock when its process ends, for any reason."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import InputError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock ``folder`` while the body runs, with the file .NAME.lock next to it.

    Raises InputError if another process has locked it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f".{folder.name}.lock").open("a+")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{folder}: in use by process {file.read().strip()}; wait for it or kill it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked ``folder``."""
    try:
        with folder.with_name(f".{folder.name}.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
