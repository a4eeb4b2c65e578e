"""Traces of scripts that start as forks of a warm process."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.prediction.script.trace import TRACING_MODULE
from experiments.system.processes import process_group
from experiments.system.warm_start import RANK_SOCKET_VARIABLE, Process, start_in_warm_process
from tests.support.processes.warm_processes import warm_process

LIBRARIES = "tests.support.processes.traced_libraries"


@contextmanager
def warm_traces(folder: Path, packages: Sequence[Path] = ()) -> Iterator[str]:
    """Yield the socket of a warm process for traces. packages: folders of further packages."""
    with warm_process(folder, LIBRARIES, packages=packages) as (process, environment):
        assert process.poll() is None, (folder / "warm.txt").read_text()
        yield environment[RANK_SOCKET_VARIABLE]


@contextmanager
def start_warm(socket: str, command: Sequence[str], env: Mapping[str, str], **options: Any) -> Iterator[Process]:
    """Start a trace as a fork of the warm process. A replacement of ``process_group``, with the same arguments.

    A trace in a sandbox is a new process instead. socket: that of the warm process.
    """
    start = [sys.executable, "-m", TRACING_MODULE]
    if list(command[:3]) != start:
        with process_group(command, env=env, **options) as process:
            yield process
        return
    assert options["cwd"] == Path.cwd()
    with open(os.devnull, "wb") as nothing:
        hidden = options["stderr"] == subprocess.DEVNULL
        outputs = (nothing.fileno(),) * 2 if hidden else (options["stdout"], sys.__stderr__.fileno())
        yield start_in_warm_process(RANK_SOCKET_VARIABLE, command[2:], {**env, RANK_SOCKET_VARIABLE: socket}, outputs)
