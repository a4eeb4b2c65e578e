"""Folders of this program, checksums of files, atomic writes, and notebooks."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, TextIO

from experiments.errors import InputError
from provision.files import open_file, read_text

GIB = 1024**3
MAX_CACHED_FILES, MAX_CACHED_BYTES = 2000, 64 * 1024**2
"""How many files, and how many bytes, ``write_to_cache`` keeps in one folder."""
PARTIAL_SUFFIX, MAX_NAME_START = ".part", 40
"""End of the names of partial files, and how many characters of a file's name theirs begins with: a name has at most
255 bytes."""
CODE_FOLDER = Path(__file__).resolve().parents[2]
"""The folder with the packages experiments and provision."""


def cache_folder() -> Path:
    """Return the cache folder: TESTBED_CACHE, else llm-testbed in the user's cache folder. It need not exist."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TESTBED_CACHE") or home / "llm-testbed").absolute()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file as a hexadecimal string. Raises OSError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_output(path: Path, option: str = "", *, append: bool = False) -> Iterator[TextIO]:
    """Open a file for writing in UTF-8. option: the option that names the file, for error messages.

    append: keep the file's content. The file may be a device, or a FIFO with a reader. Raises InputError if the file
    cannot be opened or written.
    """
    mode = os.O_APPEND if append else os.O_TRUNC
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | mode, 0o666)
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror})".strip()) from None


def write_atomically(path: Path, text: str, errors: str = "strict") -> None:
    """Write ``text`` in UTF-8 so that the file is never incomplete, even if this process is killed.

    The text is first written to a new partial file next to ``path``, whose name ends with .part and is not used by any
    other process or thread. So several writers of the same file cannot damage it: the last one wins. The partial file
    is removed if the write fails or is interrupted. Raises OSError with ``path``.
    """
    start = path.name[:MAX_NAME_START]
    partial = path.with_name(f"{start}.{os.getpid()}-{token_hex(8)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("x", encoding="utf-8", errors=errors) as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def write_to_cache(path: Path, text: str) -> None:
    """Write ``text`` as ``write_atomically`` does, and keep the folder of ``path`` below its limits.

    Of all files in the folder, the newest MAX_CACHED_FILES with at most MAX_CACHED_BYTES in total stay, and always
    ``path``. The folder is for nothing else: partial files that a killed process has left are removed in time, too.
    Raises OSError if ``path`` cannot be written, but not if an old file cannot be removed.
    """
    write_atomically(path, text)
    with suppress(OSError), os.scandir(path.parent) as entries:
        files = [(one, one.stat(follow_symlinks=False)) for one in entries if one.is_file(follow_symlinks=False)]
        by_age = sorted(files, key=lambda file: (file[0].name == path.name, file[1].st_mtime_ns), reverse=True)
        total = 0
        for number, (entry, status) in enumerate(by_age, 1):
            total += status.st_size
            if number > 1 and (number > MAX_CACHED_FILES or total > MAX_CACHED_BYTES):
                os.unlink(entry.path)


def point_link(link: Path, name: str) -> None:
    """Make the symbolic link ``link`` point to ``name`` in its own folder. At no time is the link missing."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)


def read_notebook(path: Path) -> Any:
    """Return the document of a Jupyter notebook, converted to version 4 of the format.

    Raises InputError if the file cannot be read, or if it is not a notebook.
    """
    import nbformat

    try:
        text = read_text(path)
        content = json.loads(text)
        if problem := _problem_of_notebook(content):
            raise InputError(f"{path}: not a Jupyter notebook: {problem}")
        return nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not a Jupyter notebook: not JSON ({place}: {error.msg})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a Jupyter notebook: not text in UTF-8") from None
    except Exception as error:  # nbformat raises errors of many classes
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a Jupyter notebook: {type(error).__name__}: {reason}") from None


def _problem_of_notebook(content: Any) -> str:
    """Return what a notebook of versions 3 or 4 has and ``content`` lacks; '' if it lacks nothing."""
    if not isinstance(content, dict) or type(content.get("nbformat")) is not int:
        return "it has no version (nbformat)"
    sheets = content.get("worksheets") if content["nbformat"] < 4 else [content]
    if not isinstance(sheets, list) or not all(
        isinstance(one, dict) and isinstance(one.get("cells"), list) for one in sheets
    ):
        return "it has no list of cells"
    for number, cell in enumerate((cell for sheet in sheets for cell in sheet["cells"]), 1):
        if not isinstance(cell, dict) or not isinstance(cell.get("cell_type"), str):
            return f"cell {number} has no type (cell_type)"
        has_input = content["nbformat"] < 4 and cell["cell_type"] == "code"
        source = cell.get("source", cell.get("input") if has_input else None)
        lines = source if isinstance(source, list) else [source]
        if not all(isinstance(line, str) for line in lines):
            return f"the source of cell {number} is neither a text nor a list of lines"
        if not isinstance(cell.get("metadata", {}), dict):
            return f"the metadata of cell {number} are no object"
    return ""
