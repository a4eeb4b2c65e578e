"""Run commands, and read and write files, on this machine or over SSH. Paths are relative to the home folder.

If the connection drops, the next command opens a new one. The interrupted command runs again only if the caller
declares it repeatable; otherwise it raises ConnectionDropped.
"""

import hashlib
import logging
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from provision.errors import CommandFailed, ConnectionDropped, LoginRejected, TimedOut
from provision.ssh.process import CHUNK_BYTES, InputChunks, stream_process

if TYPE_CHECKING:
    from tenacity import Retrying

TIMEOUT_S = 60.0
ATTEMPTS = 3
KILL_GRACE_S = 5
"""Time between SIGTERM, which a command gets at its time limit, and SIGKILL."""
TIMEOUT_SLACK_S = 15.0
"""How long this program still waits for a command after the command's time limit on the machine."""
TIMEOUT_CODES = (124, 137, -signal.SIGKILL)
"""Exit codes of a command that exceeded its time limit."""
SHOWN_CHARACTERS = 100
"""Maximum number of characters of a command in a message."""

OUTPUT_MARK = b"\x02llm-testbed\x03"
"""Printed before each command's output. Text before this mark is from the login shell's start files and is dropped."""
MAX_GREETING_BYTES = 1 << 20
"""Limit of the text before OUTPUT_MARK."""

OutputSink = Callable[[bytes], object]

logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class CommandResult:
    """A command's exit code and output."""

    code: int
    out: str
    err: str


class Shell(ABC):
    """A machine that runs commands by POSIX sh. Every call may raise NotReached."""

    where: str
    """The machine's name in messages."""

    _dropped_code: int | None = None
    """Exit code, after a dropped connection, of the command line of ``_program``; None if connections cannot drop."""

    def run(
        self,
        command: str,
        *,
        input: bytes = b"",
        timeout_s: float = TIMEOUT_S,
        check: bool = True,
        repeatable: bool = False,
    ) -> CommandResult:
        """Run a command and wait for its end, at most ``timeout_s`` seconds.

        repeatable: whether to run the command again if the connection drops. check: whether to raise CommandFailed for
        an exit code other than 0. Also raises TimedOut, and ConnectionDropped if the command's outcome is unknown.
        """
        if not repeatable:
            return self._run(command, input, timeout_s, check)
        return _attempts()(self._run, command, input, timeout_s, check)

    def stream(self, command: str, sink: OutputSink, *, source: InputChunks = (), timeout_s: float = TIMEOUT_S) -> None:
        """Run a command once, passing its output to ``sink`` as it arrives; ``source`` is the command's input.

        Raises the errors of ``run``.
        """
        self._execute_and_check(command, source, sink, timeout_s, True)

    @contextmanager
    def open_output(
        self, command: str, *, source: InputChunks = (), timeout_s: float = TIMEOUT_S
    ) -> Iterator[IO[bytes]]:
        """Run a command once and yield its output as a stream.

        Use it for large output: over SSH it opens a separate connection.

        Raises the errors of ``run`` at the end of the body.
        """
        program, cwd = self._program(_with_time_limit(command, timeout_s))
        with stream_process(program, source, timeout_s + TIMEOUT_SLACK_S, cwd) as process:
            head = _OutputFilter(self.where, lambda chunk: None)
            while not head.mark_received and (byte := process.out.read(1)):
                head(byte)
            yield process.out
        if process.code == self._dropped_code:
            raise ConnectionDropped(f"{self.where}: the connection dropped while a command ran")
        self._raise_on_failure(
            command, CommandResult(process.code, "", process.err.decode(errors="replace")), timeout_s, True
        )

    def put(self, data: bytes | Path, remote: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Write ``data``, or the content of a local file, to a remote file, atomically; check the file's SHA-256."""
        digest = hashlib.sha256()
        for chunk in _chunks(data):
            digest.update(chunk)
        path, part = shlex.quote(remote), shlex.quote(f"{remote}.part")
        folder = shlex.quote(str(PurePosixPath(remote).parent))
        verify = f"printf '%s  %s\\n' {digest.hexdigest()} {part} | sha256sum --check --status"
        command = f"mkdir -p {folder} && cat > {part} && {verify} && mv {part} {path}"
        for attempt in _attempts():
            with attempt:
                self.stream(command, lambda chunk: None, source=_chunks(data), timeout_s=timeout_s)

    def get(self, remote: str, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """Return the content of a remote file. Raises CommandFailed if it cannot be read."""
        content = bytearray()
        self.stream(f"cat {shlex.quote(remote)}", content.extend, timeout_s=timeout_s)
        return bytes(content)

    @abstractmethod
    def forward(self, remote_port: int) -> AbstractContextManager[int]:
        """Yield a local port that is forwarded to ``remote_port`` on the machine's loopback address."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection; the next command opens a new one."""

    @abstractmethod
    def _program(self, command: str) -> tuple[list[str], Path | None]:
        """Return the local command line that runs ``command``, and the folder to start it in."""

    @abstractmethod
    def _execute(self, command: str, source: InputChunks, sink: OutputSink, timeout_s: float) -> tuple[int, bytes]:
        """Run a command; return its exit code and its stderr."""

    def _run(self, command: str, input: bytes, timeout_s: float, check: bool) -> CommandResult:
        out = bytearray()
        source = (input,) if input else ()
        result = self._execute_and_check(command, source, out.extend, timeout_s, check)
        return replace(result, out=out.decode(errors="replace"))

    def _execute_and_check(
        self, command: str, source: InputChunks, sink: OutputSink, timeout_s: float, check: bool
    ) -> CommandResult:
        """Run a command, passing its own output to ``sink``; return its exit code and stderr."""
        output = _OutputFilter(self.where, sink)
        code, err = self._execute(_with_time_limit(command, timeout_s), source, output, timeout_s + TIMEOUT_SLACK_S)
        result = CommandResult(code, "", err.decode(errors="replace"))
        self._raise_on_failure(command, result, timeout_s, check)
        if not output.mark_received and not code:
            raise LoginRejected(
                f"{self.where}: its login shell runs no commands; correct the shell's start files; "
                f"they print: {output.greeting}"
            )
        return result

    def _raise_on_failure(self, command: str, result: CommandResult, timeout_s: float, check: bool) -> None:
        if result.code in TIMEOUT_CODES:
            raise TimedOut(f"{self.where}: timed out after {timeout_s:.0f} s: {_shorten(command)}")
        if check and result.code:
            reason = (result.err.strip().splitlines() or [f"exit code {result.code}"])[-1]
            message = f"{self.where}: {reason} (exit code {result.code} of: {_shorten(command)})"
            raise CommandFailed(message, result.code)


class LocalShell(Shell):
    """A shell of this machine."""

    where = "this machine"

    def forward(self, remote_port: int) -> AbstractContextManager[int]:
        """Yield the port itself."""
        return nullcontext(remote_port)

    def close(self) -> None:
        """Do nothing."""

    def _program(self, command: str) -> tuple[list[str], Path | None]:
        return ["sh", "-c", command], Path.home()

    def _execute(self, command: str, source: InputChunks, sink: OutputSink, timeout_s: float) -> tuple[int, bytes]:
        program, cwd = self._program(command)
        with stream_process(program, source, timeout_s, cwd) as process:
            while chunk := process.out.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
                sink(chunk)
        return process.code, process.err


class _OutputFilter:
    """Passes on a command's output, which begins after OUTPUT_MARK. mark_received: whether the mark has arrived."""

    def __init__(self, where: str, sink: OutputSink) -> None:
        self._where, self._sink, self._head, self.mark_received = where, sink, bytearray(), False

    def __call__(self, chunk: bytes) -> None:
        if self.mark_received:
            self._sink(chunk)
            return
        self._head += chunk
        _, mark, output = self._head.partition(OUTPUT_MARK)
        self.mark_received = bool(mark)
        if mark and output:
            self._sink(bytes(output))
        if not mark and len(self._head) > MAX_GREETING_BYTES:
            raise LoginRejected(
                f"{self._where}: its login shell does not stop printing; correct the shell's start files; "
                f"they print: {self.greeting}"
            )

    @property
    def greeting(self) -> str:
        """The beginning of the login shell's own output, for messages."""
        return repr(_shorten(self._head.decode(errors="replace"))) if self._head else "nothing"


def _attempts() -> "Retrying":
    """Return the attempts of an operation that is repeated when the connection drops."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

    return Retrying(stop=stop_after_attempt(ATTEMPTS), retry=retry_if_exception_type(ConnectionDropped), reraise=True)


def _with_time_limit(command: str, timeout_s: float) -> str:
    """Return the command with a time limit on the machine, because a dropped connection does not end the command."""
    marked = f"printf '{''.join(f'{chr(92)}{byte:03o}' for byte in OUTPUT_MARK)}'; {command}"
    return f"timeout --kill-after={KILL_GRACE_S} {timeout_s:g} sh -c {shlex.quote(marked)}"


def _chunks(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _shorten(command: str) -> str:
    line = command.strip().split("\n")[0]
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}..."


def problem_in_words(problem: BaseException) -> str:
    """Return the problem's message, or its type if it has none."""
    return str(problem) or type(problem).__name__
