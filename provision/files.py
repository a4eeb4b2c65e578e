"""Read files that other people or machines may have written, and show names and texts of others."""

import os
import re
import stat
from errno import EFBIG, EINVAL, EISDIR
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_BYTES = 256 << 20
"""Limit of a file that is read into memory. The largest result of a row has less than 1 MiB."""
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, characters that reverse the direction of text, and bytes that are no text."""


def open_file(path: Path) -> BufferedReader:
    """Open a plain file for reading. Raises OSError also for a FIFO, a device, a socket and a folder, without waiting.

    A program that reads a FIFO or a device could wait or read forever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    raise OSError(EINVAL, "Not a plain file", str(path))


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a plain file. Raises OSError as ``open_file``, and for more than ``limit`` bytes."""
    with open_file(path) as file:
        content = b"" if os.fstat(file.fileno()).st_size > limit else file.read(limit + 1)
        if len(content) > limit or os.fstat(file.fileno()).st_size > limit:
            raise OSError(EFBIG, f"Larger than {limit >> 20} MiB", str(path))
    return content


def read_text(path: Path, limit: int = MAX_BYTES, errors: str = "strict") -> str:
    """Return the text of a plain file in UTF-8, without a byte-order mark. Raises OSError and UnicodeDecodeError."""
    return read_bytes(path, limit).decode("utf-8-sig", errors)


def printable_value(value: Any) -> Any:
    """Return a value for a template: ``printable`` text, any other value as it is."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def printable(text: str) -> str:
    """Return ``text`` with escapes in place of characters that are invisible or change a terminal or a page."""
    return INVISIBLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
