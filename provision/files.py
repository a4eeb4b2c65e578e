"""Read files, and make texts printable, safely: other people or machines may have written them."""

import os
import re
import stat
from errno import EFBIG, EINVAL, EISDIR
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_BYTES = 256 << 20
"""Size limit of a file that is read into memory. The largest result file of an experiment is smaller than 1 MiB."""
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, characters that reverse the direction of text, and lone surrogates."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError for anything else, such as a folder, a FIFO or a device.

    The call never waits. Opening a FIFO, or reading a device, could wait for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    raise OSError(EINVAL, "Not a regular file", str(path))


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file. Raises OSError as ``open_file`` does, and for more than ``limit`` bytes."""
    with open_file(path) as file:
        content = b"" if os.fstat(file.fileno()).st_size > limit else file.read(limit + 1)
        if len(content) > limit or os.fstat(file.fileno()).st_size > limit:
            raise OSError(EFBIG, f"Larger than {limit >> 20} MiB", str(path))
    return content


def read_text(path: Path, limit: int = MAX_BYTES, errors: str = "strict") -> str:
    """Return the text of a regular file in UTF-8, without a byte-order mark. Raises OSError and UnicodeDecodeError."""
    return read_bytes(path, limit).decode("utf-8-sig", errors)


def printable_value(value: Any) -> Any:
    """Return ``printable(value)`` for a text, and any other value unchanged. Templates pass values of any type."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def printable(text: str) -> str:
    """Return ``text`` with an escape sequence for each invisible or terminal-controlling character."""
    return INVISIBLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
