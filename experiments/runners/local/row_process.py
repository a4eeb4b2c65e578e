"""The processes of one row: started as a family, ended as a family, whatever sessions they have moved to.

Every process of a row inherits the environment variable TESTBED_ROW, which holds the row's folder. That is how the
family is found again, also by a later runner after this one was killed.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from experiments.system import processes as families
from experiments.system.files import CODE

ROW_VARIABLE = "TESTBED_ROW"
NOTEBOOK_LOG = "notebook.log"


def start(row_folder: Path, worker: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the row's notebook in a session of its own; what the notebook's own machinery says goes to notebook.log."""
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (row_folder / NOTEBOOK_LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.runners.local.row_notebook", str(row_folder), worker, str(os.getpid())],
            env={
                **os.environ,
                **environment,
                ROW_VARIABLE: str(row_folder.resolve()),
                "PYTHONPATH": os.pathsep.join(paths),
                "JUPYTER_PREFER_ENV_PATH": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def tagged_processes(row_folder: Path) -> list[psutil.Process]:
    """Every living process of the row."""
    return families.tagged_processes(ROW_VARIABLE, str(row_folder.resolve()))


def rows_alive() -> bool:
    """True when a process of any row, of this runner or another, lives on this machine."""
    return bool(families.tagged_processes(ROW_VARIABLE))


def end(row_folder: Path, within_s: float = 20.0) -> list[int]:
    """End every process of the row; the ids of those that were still there when ``within_s`` had passed."""
    return families.kill_tagged(ROW_VARIABLE, str(row_folder.resolve()), within_s)
