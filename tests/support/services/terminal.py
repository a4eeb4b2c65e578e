"""The output of a function on a real pseudo-terminal of a given width, as the visible lines."""

import os
import pty
import re
import select
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

PARTS = re.compile(
    r"\x1b\[(?P<arguments>[0-9;?<=>]*)[ -/]*(?P<command>[@-~])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n]+)"
)
ROWS = 50
RETYPE_S = 1.0
END_OF_FULL_SCREEN = "\x1b[?1049l"
TERMINAL_VARIABLES = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")


def terminal_output(
    run: Callable[[], object],
    width: int,
    environment: Mapping[str, str] | None = None,
    keys: str = "",
    after: str = "",
) -> str:
    """Return the bytes that ``run`` writes to a terminal of ``width`` columns, as text.

    ``run`` runs in this process, because a fork of a process with so many modules takes a tenth of a second. keys:
    typed every RETYPE_S once the process has written ``after``, since a program that starts slowly discards what was
    typed before.
    """
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (ROWS, width))
    written = bytearray()
    reader = threading.Thread(target=_read_and_type, args=(master, written, keys, after.encode()))
    reader.start()
    with _streams_on(terminal), _environment_of_terminal(environment or {}):
        try:
            run()
        except BaseException as problem:
            print(f"{type(problem).__name__}: {problem}")
    reader.join()
    os.close(master)
    return written.decode()


def _read_and_type(master: int, written: bytearray, keys: str, after: bytes) -> None:
    """Append what is written to the terminal to ``written``, until the terminal is closed; type the keys."""
    typed = time.monotonic()
    with suppress(OSError):  # EIO: the terminal is closed
        while True:
            if after not in written:
                typed = time.monotonic()
            elif keys and time.monotonic() > typed + RETYPE_S:
                os.write(master, keys.encode())
                typed = time.monotonic()
            if keys and not select.select([master], [], [], RETYPE_S / 2)[0]:
                continue
            if not (chunk := os.read(master, 1 << 16)):
                break
            written += chunk


@contextmanager
def _streams_on(terminal: int) -> Iterator[None]:
    """Make the terminal standard input, output and error; close it afterwards."""
    streams, saved = (sys.stdin, sys.stdout, sys.stderr), [os.dup(number) for number in range(3)]
    for number in range(3):
        os.dup2(terminal, number)
    os.close(terminal)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", closefd=False) for number in range(3)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextmanager
def _environment_of_terminal(environment: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables of a terminal, without those that describe another one; restore all afterwards."""
    before = dict(os.environ)
    for name in (*TERMINAL_VARIABLES, "CI"):
        os.environ.pop(name, None)
    os.environ |= {"TERM": "xterm-256color", **environment}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def screen_text(text: str, width: int) -> str:
    """Return what a terminal of ``width`` columns shows after ``text``, without spaces at the ends of lines."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for part in PARTS.finditer(text):
        if part["control"] == "\r":
            column = 0
        elif part["control"] == "\n":
            row += 1
            lines += [[]] if row == len(lines) else []
        elif part["command"] == "A":
            row -= int(part["arguments"] or 1)
        elif part["command"] == "H":
            row, column = (int(number or 1) - 1 for number in (*part["arguments"].split(";"), "", "")[:2])
            lines += [[] for _ in range(row + 1 - len(lines))]
        elif part["command"] == "K":
            lines[row] = [] if part["arguments"] == "2" else lines[row][:column]
        for character in part["text"] or "":
            if column == width:
                row, column = row + 1, 0
                lines += [[]] if row == len(lines) else []
            line = lines[row]
            line += " " * (column + 1 - len(line))
            line[column] = character
            column += 1
    return "\n".join("".join(line).rstrip() for line in lines).rstrip() + "\n"


def full_screen(text: str, width: int) -> str:
    """Return what a program that takes the whole screen shows before it ends."""
    return screen_text(text.rpartition(END_OF_FULL_SCREEN)[0], width)
