"""A program of this machine whose output is read as it comes, while it is fed and what it complains of is kept."""

import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, Timer
from typing import IO

CHUNK = 1 << 18
PIPE_BYTES = 1 << 20
FED_S = 5.0

Source = Iterable[bytes]


@dataclass
class Running:
    """A program under way; its exit code and what it printed to stderr are there once it has ended."""

    out: IO[bytes]
    code: int = 0
    err: bytes = b""


@contextmanager
def running(program: Sequence[str], source: Source, timeout_s: float, cwd: Path | None = None) -> Iterator[Running]:
    """Start it, and wait for its end; it is killed after ``timeout_s``, and told to end when the body raises."""
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
        state = Running(process.stdout)
        try:
            yield state
            while process.stdout.read(CHUNK):
                continue
            state.code = process.wait()
        except BaseException:
            process.terminate()
            raise
        finally:
            end.cancel()
            feeder.join(FED_S)
        err.seek(0)
        state.err = err.read()


def feed_stdin(source: Source, write: Callable[[bytes], object], end: Callable[[], object]) -> Thread:
    """A thread that gives a command its input; one that no longer reads has ended, and says so by its code."""

    def feed() -> None:
        with suppress(Exception):
            for chunk in source:
                write(chunk)
        with suppress(Exception):
            end()

    thread = Thread(target=feed, daemon=True)
    thread.start()
    return thread
