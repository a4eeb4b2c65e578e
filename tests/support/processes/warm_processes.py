"""A warm process for tests, and the environment by which other processes find it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.runners.local.warm import SINGLE_THREAD_VARIABLES
from experiments.system.environment import pad_environment
from experiments.system.files import CODE_FOLDER
from experiments.system.warm_start import RANK_SOCKET_VARIABLE, is_ready
from tests.support.processes.waiting import wait_for

CHILD = "tests.support.processes.warm_child"


@contextmanager
def warm_process(
    folder: Path, *modules: str, packages: Sequence[Path] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """Yield a warm process that has imported ``modules``, and the environment variables by which others find it.

    Its output goes to warm.txt in ``folder``. packages: folders of further packages.
    """
    path = os.pathsep.join(map(str, (CODE_FOLDER, *packages)))
    environment = {**os.environ, RANK_SOCKET_VARIABLE: str(folder / "socket"), "PYTHONPATH": path}
    command = [
        sys.executable,
        "-u",
        "-m",
        "experiments.system.warm_process",
        environment[RANK_SOCKET_VARIABLE],
        *modules,
    ]
    with (folder / "warm.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=pad_environment(environment | SINGLE_THREAD_VARIABLES),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: is_ready(environment, RANK_SOCKET_VARIABLE) or process.poll() is not None)
        yield process, environment
    finally:
        process.kill()
        process.wait()
