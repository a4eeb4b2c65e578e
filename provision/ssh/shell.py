"""Commands and files on a machine: on this one, or over SSH. Paths that are not absolute begin in the home folder.

A line that is cut is made anew for the next command. A command that it was cut under is given again only where the
caller says that it may be; LineCut says otherwise.
"""

import hashlib
import logging
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
)

from provision.errors import CommandFailed, LineCut, TimedOut
from provision.ssh.process import CHUNK, Source, running

TIMEOUT_S = 60.0


TRIES = 3


KILL_S = 5
TIMEOUT_SLACK_S = 15.0


TIMED_OUT = (124, 137, -signal.SIGKILL)


SHOWN = 100

Sink = Callable[[bytes], object]

logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


class Shell(ABC):
    """A machine that commands are given to, by POSIX sh. Every call may raise NotReached."""

    where: str
    """The machine's name for people."""

    _lost: int | None = None
    """The exit code of ``_program`` when the line was cut."""

    def run(
        self,
        command: str,
        *,
        input: bytes = b"",
        timeout_s: float = TIMEOUT_S,
        check: bool = True,
        repeatable: bool = False,
    ) -> Done:
        """Give a command and wait for its end, ``timeout_s`` at most.

        repeatable: it may be given twice, and is when the line is cut. CommandFailed, with ``check``, for an exit code
        other than 0; TimedOut; LineCut when the command may or may not have done its work.
        """
        tries = Retrying(
            stop=stop_after_attempt(TRIES if repeatable else 1), retry=retry_if_exception_type(LineCut), reraise=True
        )
        return tries(self._run, command, input, timeout_s, check)

    def stream(self, command: str, sink: Sink, *, source: Source = (), timeout_s: float = TIMEOUT_S) -> None:
        """Give a command, and what it prints to ``sink`` as it comes; ``source`` is its input. Never given twice."""
        code, err = self._execute(_bounded(command, timeout_s), source, sink, timeout_s + TIMEOUT_SLACK_S)
        self._check(command, Done(code, "", err.decode(errors="replace")), timeout_s, True)

    @contextmanager
    def reading(self, command: str, *, source: Source = (), timeout_s: float = TIMEOUT_S) -> Iterator[IO[bytes]]:
        """What a command prints, to be read as it comes. For much: over SSH it is a line of its own, by OpenSSH.

        At the end of the body: as ``run``. Never given twice.
        """
        program, cwd = self._program(_bounded(command, timeout_s))
        with running(program, source, timeout_s + TIMEOUT_SLACK_S, cwd) as process:
            yield process.out
        if process.code == self._lost:
            raise LineCut(f"{self.where}: the line was cut while a command ran")
        self._check(command, Done(process.code, "", process.err.decode(errors="replace")), timeout_s, True)

    def put(self, data: bytes | Path, remote: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Write a file there: all of it, checked by its SHA-256, or none."""
        digest = hashlib.sha256()
        for chunk in _chunks(data):
            digest.update(chunk)
        path, part = shlex.quote(remote), shlex.quote(f"{remote}.part")
        folder = shlex.quote(str(PurePosixPath(remote).parent))
        check = f"printf '%s  %s\\n' {digest.hexdigest()} {part} | sha256sum --check --status"
        command = f"mkdir -p {folder} && cat > {part} && {check} && mv {part} {path}"
        tries = Retrying(stop=stop_after_attempt(TRIES), retry=retry_if_exception_type(LineCut), reraise=True)
        for attempt in tries:
            with attempt:
                self.stream(command, lambda chunk: None, source=_chunks(data), timeout_s=timeout_s)

    def get(self, remote: str, *, timeout_s: float = TIMEOUT_S) -> bytes:
        """The content of a file there; CommandFailed when it cannot be read."""
        found = bytearray()
        self.stream(f"cat {shlex.quote(remote)}", found.extend, timeout_s=timeout_s)
        return bytes(found)

    @abstractmethod
    def forward(self, remote_port: int) -> AbstractContextManager[int]:
        """A port here that leads to ``remote_port`` of the machine's loopback address, while it is open."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _program(self, command: str) -> tuple[list[str], Path | None]:
        """The program of this machine that gives a command, and the folder to start it in."""

    @abstractmethod
    def _execute(self, command: str, source: Source, sink: Sink, timeout_s: float) -> tuple[int, bytes]:
        """The exit code and what was printed to stderr."""

    def _run(self, command: str, input: bytes, timeout_s: float, check: bool) -> Done:
        out = bytearray()
        source = (input,) if input else ()
        code, err = self._execute(_bounded(command, timeout_s), source, out.extend, timeout_s + TIMEOUT_SLACK_S)
        done = Done(code, out.decode(errors="replace"), err.decode(errors="replace"))
        self._check(command, done, timeout_s, check)
        return done

    def _check(self, command: str, done: Done, timeout_s: float, check: bool) -> None:
        if done.code in TIMED_OUT:
            raise TimedOut(f"{self.where}: no end after {timeout_s:.0f} s: {_shown(command)}")
        if check and done.code:
            said = (done.err.strip().splitlines() or [f"exit code {done.code}"])[-1]
            raise CommandFailed(f"{self.where}: {said} (exit code {done.code} of: {_shown(command)})", done.code)


class LocalShell(Shell):
    """This machine."""

    where = "this machine"

    def forward(self, remote_port: int) -> AbstractContextManager[int]:
        return nullcontext(remote_port)

    def close(self) -> None:
        return None

    def _program(self, command: str) -> tuple[list[str], Path | None]:
        return ["sh", "-c", command], Path.home()

    def _execute(self, command: str, source: Source, sink: Sink, timeout_s: float) -> tuple[int, bytes]:
        program, cwd = self._program(command)
        with running(program, source, timeout_s, cwd) as process:
            while chunk := process.out.read1(CHUNK):  # type: ignore[attr-defined]
                sink(chunk)
        return process.code, process.err


def _bounded(command: str, timeout_s: float) -> str:
    """The command with its end set there too, where a line that is cut ends nothing."""
    return f"timeout --kill-after={KILL_S} {timeout_s:g} sh -c {shlex.quote(command)}"


def _chunks(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _shown(command: str) -> str:
    line = command.strip().split("\n")[0]
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _reason(problem: BaseException) -> str:
    return str(problem) or type(problem).__name__
