"""Run a local command with streams as its stdin and stdout, and capture its stderr."""

import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, Timer
from typing import IO

CHUNK_BYTES = 1 << 18
PIPE_BYTES = 1 << 20
STDIN_THREAD_LIMIT_S = 5.0
"""How long to wait for the end of the thread that writes stdin, after the command has ended."""

InputChunks = Iterable[bytes]


@dataclass
class StreamedProcess:
    """A running command; ``code`` and ``err`` (its stderr) are set once it has ended."""

    out: IO[bytes]
    code: int = 0
    err: bytes = b""


@contextmanager
def stream_process(
    program: Sequence[str], source: InputChunks, timeout_s: float, cwd: Path | None = None
) -> Iterator[StreamedProcess]:
    """Start a command; after the body of the with statement, wait for its end.

    source: input of the command. Kills the command after ``timeout_s``; terminates it if the body raises.
    """
    with (
        tempfile.TemporaryFile() as err,
        subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, cwd=cwd, pipesize=PIPE_BYTES
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        deadline = Timer(timeout_s, process.kill)
        deadline.daemon = True
        deadline.start()
        feeder = feed_stdin(source, process.stdin.write, process.stdin.close)
        state = StreamedProcess(process.stdout)
        try:
            yield state
            while process.stdout.read(CHUNK_BYTES):
                continue
            state.code = process.wait()
        except BaseException:
            process.terminate()
            raise
        finally:
            deadline.cancel()
            feeder.join(STDIN_THREAD_LIMIT_S)
        err.seek(0)
        state.err = err.read()


def feed_stdin(source: InputChunks, write: Callable[[bytes], object], close: Callable[[], object]) -> Thread:
    """Start a thread that writes ``source`` to a command's stdin, then closes it.

    The thread ignores write errors: a command that ends before it has read everything reports this by its exit code.
    """

    def feed() -> None:
        with suppress(Exception):
            for chunk in source:
                write(chunk)
        with suppress(Exception):
            close()

    thread = Thread(target=feed, daemon=True)
    thread.start()
    return thread


def last_line(text: str) -> str:
    """Return the last line of a program's output that is not empty, or ''."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
