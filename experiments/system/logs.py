"""Extract the cause and location of a failure from a log, a traceback or a signal."""

import re
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from provision.files import open_file, printable

LOG_BYTES = 1 << 16
CONTROL_CHARACTERS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
COLOR = re.compile(r"\x1b\[[0-9;]*m")
MAX_LOG_LINES = 10
"""Maximum number of log lines in a result."""
FRAME_LINE = re.compile(r'^\s*File "(?P<path>[^"]+)", line (?P<line>\d+),? in (?P<function>.+)$', re.MULTILINE)
STACK_HEAD = re.compile(r"^.*\(most recent call (?P<end>first|last)\):.*$", re.MULTILINE)
PROJECT_PATH = re.compile(r"(?:^|(?<!/tests)/)((?:experiments|provision)/[\w/]+\.py)$")
LIBRARY_PATH = re.compile(r".*(?:/(?:site|dist)-packages/|/lib/python3\.\d+/)(.+)$")
ERROR_WORDS = re.compile(
    r"\w*(?:error|exception)\b|fatal|\bkilled\b|cannot|no such|not found|denied|no space", re.IGNORECASE
)
ERROR_HINTS = {
    r"Killed signal terminated program|\b(?:c\+\+|g\+\+|nvcc|cc1plus): .*\bKilled": (
        "the compiler was killed, usually because the host ran out of memory"
    ),
    r"No space left on device": "the disk is full",
    r"CUDA driver version is insufficient|driver on your system is too old": (
        "the GPU's driver is older than PyTorch's CUDA; update the driver"
    ),
    r"Bus error|unable to (?:open|mmap|write) .*shared memory": "shared memory (/dev/shm) is full",
    r"DeadKernelError|Kernel died": "the process of the row's notebook was killed",
}
SIGNAL_CAUSES = {
    signal.SIGKILL: "usually because the host ran out of memory, or because a user killed it",
    signal.SIGTERM: "by another program, such as at a shutdown or at the end of a job",
    signal.SIGSEGV: "a crash in compiled code, often of a library built for another GPU, driver or CPU",
    signal.SIGBUS: "usually because /dev/shm or the disk is full",
    signal.SIGILL: "code compiled for another CPU",
    signal.SIGABRT: "a library aborted the process",
    signal.SIGFPE: "an arithmetic error in compiled code",
}


class StackFrame(NamedTuple):
    """A frame of a stack: file, line and function."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        known = PROJECT_PATH.search(self.path) or LIBRARY_PATH.search(self.path)
        return f"{known[1] if known else self.path.rpartition('/')[2]}:{self.line} in {self.function}"


def describe_signal(number: int) -> str:
    """Describe a signal that ended a process, and its usual cause."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"killed by signal {number}"
    meaning = SIGNAL_CAUSES.get(signal.Signals(number))
    return f"killed by {name}" + (f", {meaning}" if meaning else "")


def location_of_error(error: BaseException) -> str:
    """Return the location of an error: the innermost frame of this project's code, and the innermost library frame."""
    stack = traceback.extract_tb(error.__traceback__)
    return _describe_location([StackFrame(frame.filename, frame.lineno or 0, frame.name) for frame in stack])


def location_in_log(text: str) -> str:
    """Return the location of the last stack in a log that contains this project's code; '' if there is none."""
    heads = list(STACK_HEAD.finditer(text))
    ends = [*(head.start() for head in heads), len(text)][1:]
    stacks = [_parse_frames(text[head.end() : end], head["end"]) for head, end in zip(heads, ends, strict=True)]
    own = [frames for frames in stacks if any(PROJECT_PATH.search(frame.path) for frame in frames)]
    return _describe_location((own or [[]])[-1])


def error_line(text: str, default: str) -> str:
    """Return the last line of a log that mentions an error; without such a line, the last line.

    A hint follows the line if the cause is known. Lines of tracebacks are ignored. For a log without other lines,
    ``default`` is returned.
    """
    lines = _lines_outside_stacks(text)
    error_lines = [line for line in lines if ERROR_WORDS.search(line)]
    line = (error_lines or lines or [default])[-1]
    hint = next((hint for pattern, hint in ERROR_HINTS.items() if re.search(pattern, text)), "")
    return f"{line} ({hint})" if hint else line


def error_message(error: BaseException) -> str:
    """Return the first line of an error's message and, if other lines mention an error, the last of these lines."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    detail = error_line("\n".join(rest), "") if any(map(ERROR_WORDS.search, rest)) else ""
    return f"{first.strip()}: {detail}" if detail else first.strip()


def end_of_log(path: Path) -> str:
    """Return the last LOG_BYTES of a log, without control characters."""
    with open_file(path) as log:
        log.seek(max(0, path.stat().st_size - LOG_BYTES))
        return CONTROL_CHARACTERS.sub("", log.read(LOG_BYTES).decode(errors="replace"))


def lines_for_terminal(text: str) -> str:
    """Return a part of a log as text for a terminal.

    Colors are removed, each state of a progress bar gets a line, and other control characters are escaped.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return printable(COLOR.sub("", lines))


def last_lines(text: str) -> tuple[str, ...]:
    """Return the last lines of a log, without blank lines; at most MAX_LOG_LINES."""
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-MAX_LOG_LINES:]


def _parse_frames(text: str, most_recent: str) -> list[StackFrame]:
    """Return the frames of one stack, the innermost frame last."""
    frames = [
        StackFrame(match["path"], int(match["line"]), match["function"].strip()) for match in FRAME_LINE.finditer(text)
    ]
    return frames[::-1] if most_recent == "first" else frames


def _describe_location(frames: Sequence[StackFrame]) -> str:
    in_files = [frame for frame in frames if not frame.path.startswith("<")]
    own = next((frame for frame in reversed(in_files) if PROJECT_PATH.search(frame.path)), None)
    if own is None or own is in_files[-1]:
        return str(in_files[-1]) if in_files else ""
    return f"{own}, which called {in_files[-1]}"


def _lines_outside_stacks(text: str) -> list[str]:
    """Return the lines of a log that are not part of a stack: not its first line, a frame or a source line."""
    lines, in_stack = [], False
    for line in text.splitlines():
        if STACK_HEAD.match(line) or FRAME_LINE.match(line):
            in_stack = True
        elif line.strip() and not (in_stack and line.startswith(" ")):
            in_stack = False
            lines.append(line.strip())
    return lines
