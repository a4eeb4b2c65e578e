"""What a log, a traceback or a signal says about a failure."""

import re
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LOG_BYTES = 1 << 16
KEPT_LINES = 10
"""Lines of a log that a result keeps."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
FRAME = re.compile(r'^\s*File "(?P<path>[^"]+)", line (?P<line>\d+),? in (?P<function>.+)$', re.MULTILINE)
STACK = re.compile(r"^.*\(most recent call (?P<end>first|last)\):.*$", re.MULTILINE)
OWN = re.compile(r"(?:^|(?<!/tests)/)((?:experiments|provision)/[\w/]+\.py)$")
LIBRARY = re.compile(r".*(?:/(?:site|dist)-packages/|/lib/python3\.\d+/)(.+)$")
TELLING = re.compile(
    r"\w*(?:error|exception)\b|fatal|\bkilled\b|cannot|no such|not found|denied|no space", re.IGNORECASE
)
HINTS = {
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
SIGNALS = {
    signal.SIGKILL: "usually because the host ran out of memory, or by somebody",
    signal.SIGTERM: "from outside, such as by a shutdown or the end of a job",
    signal.SIGSEGV: "a crash in compiled code, often of a library built for another GPU, driver or CPU",
    signal.SIGBUS: "usually because /dev/shm or the disk is full",
    signal.SIGILL: "compiled code for another CPU",
    signal.SIGABRT: "a library gave up",
    signal.SIGFPE: "an arithmetic error in compiled code",
}


class Frame(NamedTuple):
    """A call on a stack: file, line and function."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        known = OWN.search(self.path) or LIBRARY.search(self.path)
        return f"{known[1] if known else self.path.rpartition('/')[2]}:{self.line} in {self.function}"


def killed_by(number: int) -> str:
    """Return in words that a signal ended a process, and what that usually means."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"killed by signal {number}"
    meaning = SIGNALS.get(signal.Signals(number))
    return f"killed by {name}" + (f", {meaning}" if meaning else "")


def place_of(error: BaseException) -> str:
    """Return where an error was raised: the innermost frame of this project's code, and the last library call."""
    stack = traceback.extract_tb(error.__traceback__)
    return _place([Frame(frame.filename, frame.lineno or 0, frame.name) for frame in stack])


def place_in(text: str) -> str:
    """Return the same for the last stack with this project's code that a log shows; '' if it shows none."""
    heads = list(STACK.finditer(text))
    ends = [*(head.start() for head in heads), len(text)][1:]
    stacks = [_frames(text[head.end() : end], head["end"]) for head, end in zip(heads, ends, strict=True)]
    own = [frames for frames in stacks if any(OWN.search(frame.path) for frame in frames)]
    return _place((own or [[]])[-1])


def telling_line(text: str, default: str) -> str:
    """Return the last line that tells of an error, else the last one, without the frames of stacks; with a hint."""
    lines = _statements(text)
    telling = [line for line in lines if TELLING.search(line)]
    line = (telling or lines or [default])[-1]
    hint = next((hint for pattern, hint in HINTS.items() if re.search(pattern, text)), "")
    return f"{line} ({hint})" if hint else line


def message_of(error: BaseException) -> str:
    """Return the first line of an error's message, and the telling line of the rest, such as a compiler's."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    told = telling_line("\n".join(rest), "") if any(map(TELLING.search, rest)) else ""
    return f"{first.strip()}: {told}" if told else first.strip()


def end_of_log(path: Path) -> str:
    """Return the end of a log, LOG_BYTES at most, without characters that would change a terminal or a page."""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_BYTES))
        return CONTROL.sub("", log.read().decode(errors="replace"))


def tail(text: str) -> tuple[str, ...]:
    """Return the last lines of a log, without blank ones."""
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-KEPT_LINES:]


def _frames(text: str, most_recent: str) -> list[Frame]:
    """Return the frames of one stack, the innermost last."""
    frames = [Frame(match["path"], int(match["line"]), match["function"].strip()) for match in FRAME.finditer(text)]
    return frames[::-1] if most_recent == "first" else frames


def _place(frames: Sequence[Frame]) -> str:
    real = [frame for frame in frames if not frame.path.startswith("<")]
    own = next((frame for frame in reversed(real) if OWN.search(frame.path)), None)
    if own is None or own is real[-1]:
        return str(real[-1]) if real else ""
    return f"{own}, which called {real[-1]}"


def _statements(text: str) -> list[str]:
    """Return the lines of a log, without stacks: their heads, frames, and the source lines and marks below them."""
    lines, in_stack = [], False
    for line in text.splitlines():
        if STACK.match(line) or FRAME.match(line):
            in_stack = True
        elif line.strip() and not (in_stack and line.startswith(" ")):
            in_stack = False
            lines.append(line.strip())
    return lines
