"""Run a local command, streaming stdin and stdout and capturing stderr."""

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
FEEDER_EXIT_S = 5.0

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
    """Start a command and wait for its end.

    Kill it after ``timeout_s``; terminate it if the body of the with statement raises.
    """
    with (
        tempfile.TemporaryFile() as err,
        subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, cwd=cwd, pipesize=PIPE_BYTES
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        end = Timer(timeout_s, process.kill)
        end.daemon = True
        end.start()
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
            end.cancel()
            feeder.join(FEEDER_EXIT_S)
        err.seek(0)
        state.err = err.read()


def feed_stdin(source: InputChunks, write: Callable[[bytes], object], end: Callable[[], object]) -> Thread:
    """Start a thread that writes ``source`` to a command; write errors are ignored, as the exit code reports them."""

    def feed() -> None:
        with suppress(Exception):
            for chunk in source:
                write(chunk)
        with suppress(Exception):
            end()

    thread = Thread(target=feed, daemon=True)
    thread.start()
    return thread
