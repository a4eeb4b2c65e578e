"""The output of a function on a real pseudo-terminal of a given width, as the visible lines."""

import os
import pty
import re
import select
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

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
    """Return the bytes that ``run`` writes in a forked process whose terminal has ``width`` columns, as text.

    keys: typed every RETYPE_S once the process has written ``after``, since a program that starts slowly discards what
    was typed before.
    """
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (ROWS, width))
    child = os.fork()
    if not child:
        _run_on_terminal(terminal, run, environment or {})
    os.close(terminal)
    written, typed = bytearray(), time.monotonic()
    with suppress(OSError):  # EIO: the terminal is closed
        while True:
            if after.encode() not in written:
                typed = time.monotonic()
            elif keys and time.monotonic() > typed + RETYPE_S:
                os.write(master, keys.encode())
                typed = time.monotonic()
            if keys and not select.select([master], [], [], RETYPE_S / 2)[0]:
                continue
            if not (chunk := os.read(master, 1 << 16)):
                break
            written += chunk
    os.close(master)
    os.waitpid(child, 0)
    return written.decode()


def _run_on_terminal(terminal: int, run: Callable[[], object], environment: Mapping[str, str]) -> None:
    """Run with the terminal as standard input, output and error; end the process."""
    os.login_tty(terminal)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    for name in (*TERMINAL_VARIABLES, "CI"):
        os.environ.pop(name, None)
    os.environ |= {"TERM": "xterm-256color", **environment}
    try:
        run()
    except BaseException as problem:
        print(f"{type(problem).__name__}: {problem}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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
