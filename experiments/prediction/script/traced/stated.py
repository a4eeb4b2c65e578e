"""What a training program of this package tells its trace: samples, notes, and folders to remove at a sudden end."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provision.temporary import TemporaryFolder

_STATED: dict[str, str] = {}
_NOTES: dict[str, None] = {}
_FOLDERS: list[TemporaryFolder] = []


def state_sample(words: str) -> None:
    """State in words what a sample is, such as 'a text of 512 tokens'."""
    _STATED["sample"] = words


def stated_sample() -> str:
    """Return what the program stated about a sample; empty: nothing."""
    return _STATED.get("sample", "")


def state_note(words: str) -> None:
    """State in words what the prediction does not count. Each note is shown once."""
    _NOTES[words] = None


def stated_notes() -> list[str]:
    """Return the notes that the program stated."""
    return [*_NOTES]


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """Yield a temporary folder, which is also removed if the trace ends the process inside of the with statement."""
    folder = TemporaryFolder(kind)
    _FOLDERS.append(folder)
    try:
        yield folder.path
    finally:
        _FOLDERS.remove(folder)
        folder.remove()


def remove_temporary_folders() -> None:
    """Remove the folders of ``temporary_folder`` that still exist. Call it before the process ends at once."""
    for folder in _FOLDERS:
        folder.remove()
    _FOLDERS.clear()
