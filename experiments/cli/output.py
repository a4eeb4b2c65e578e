"""Print the output of commands: JSON, planned operations, checks, progress. Imports large libraries when needed."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from provision.files import printable

if TYPE_CHECKING:
    from rich.console import Console

    from provision.checks import Check

CHECK_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "not checked": "dim"}
PIPE_WIDTH = 160
"""Width of the output in characters where there is no terminal."""
LINE_CONTINUATION = " \\"


def open_standard_streams() -> None:
    """Replace closed standard streams with the null device; escape characters that a stream's encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the end
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Redirect stdout to the null device, so that flushing at the interpreter's exit cannot fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(data: Any) -> None:
    """Print data as JSON: dataclasses as objects, times in ISO 8601, durations in seconds."""
    print(json.dumps(data, indent=2, default=_json_value))


def show_plan(lines: Sequence[str], as_json: bool) -> None:
    """Print the planned operations of --dry-run."""
    if as_json:
        print_json({"would": list(lines)})
    else:
        say("\n".join(lines) or "no operation is needed")


def show_checks(checks: "Sequence[Check]", *more: str) -> None:
    """Print checks, their summary, and the further lines ``more``; colored on a terminal."""
    from rich.text import Text

    from experiments.system.tables import Line, print_lines
    from provision.checks import summary_in_words

    output = console()
    for check in checks:
        label, rest = check.line[:4], check.line[4:]
        line = Text(label, CHECK_STYLES[check.status]).append(rest, "default")
        output.print(Line(line) if output.is_terminal else line, soft_wrap=not output.is_terminal)
    print_lines(output, "\n".join([summary_in_words(checks), *more]), "bold")


def console(*, stderr: bool = False) -> "Console":
    """Return a console on stdout or stderr. Without a terminal, its width is the variable COLUMNS, else PIPE_WIDTH."""
    from experiments.system.terminal import SafeConsole

    output = SafeConsole(stderr=stderr)
    return output if output.is_terminal or "COLUMNS" in os.environ else SafeConsole(stderr=stderr, width=PIPE_WIDTH)


def say(text: str, *, stderr: bool = False) -> None:
    """Print text and flush it. On a terminal, break lines between words only."""
    stream = sys.stderr if stderr else sys.stdout
    if not (stream.isatty() or "FORCE_COLOR" in os.environ):
        print(text, file=stream, flush=True)
        return
    from experiments.system.tables import print_lines

    print_lines(console(stderr=stderr), text)


def say_command(label: str, command: str) -> None:
    """Print a shell command after a label.

    On a terminal, a long command is wrapped. Each line but the last then ends with a backslash, so that a copy of the
    lines runs in a shell.
    """
    text = f"{label}: {command}"
    if sys.stdout.isatty():
        width = console().width - len(LINE_CONTINUATION)
        text = f"{LINE_CONTINUATION}\n".join(
            textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        )
    print(text, flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line of progress on stderr; on a terminal, each line replaces the line before."""
    output = console(stderr=True)
    if not output.is_terminal:
        yield lambda line: print(printable(line), file=sys.stderr, flush=True)
        return
    with output.status("predicting") as status:
        yield status.update


def download_progress_on(output: "Console") -> Callable[[int, int | None], None]:
    """Return a function that takes the bytes downloaded so far and in total, and prints the progress on ``output``.

    It prints a line for each tenth of the download, or for each 256 MiB if the total is unknown (None).
    """
    shown = -1

    def show_progress(done_bytes: int, total_bytes: int | None) -> None:
        nonlocal shown
        part = 10 * done_bytes // total_bytes if total_bytes else done_bytes // 2**28
        if part != shown:
            shown = part
            of_total = f" of {total_bytes / 2**20:.0f}" if total_bytes else ""
            output.print(f"data: {done_bytes / 2**20:.0f}{of_total} MiB", highlight=False)

    return show_progress


def _json_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
