"""Start the processes of one row, find them, and kill them, even those that have moved to other sessions.

Every process of a row inherits the environment variable TESTBED_ROW with the row's folder. If a runner is killed, a
later runner finds the processes by this variable.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from experiments.system import processes, warm_start
from experiments.system.files import CODE_FOLDER

NOTEBOOK_MODULE = "experiments.runners.local.row_notebook"
ROW_VARIABLE = "TESTBED_ROW"
WORKER_VARIABLE = "TESTBED_WORKER"
"""Environment variable with the module that runs the row; the row's notebook reads it."""
NOTEBOOK_LOG = "notebook.log"
HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's variable for transparent huge pages (c10/core/impl/alloc_cpu.cpp)."""


def start(row_folder: Path, worker: str, environment: Mapping[str, str]) -> warm_start.Process:
    """Start the row's notebook in a new session. The output of papermill and Jupyter goes to notebook.log.

    worker: module that runs the row. environment: additional environment variables.
    """
    variables = {
        **environment_of_child_processes(),
        **environment,
        ROW_VARIABLE: str(row_folder.resolve()),
        WORKER_VARIABLE: worker,
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    with (row_folder / NOTEBOOK_LOG).open("wb") as log:
        command = [NOTEBOOK_MODULE, str(row_folder), str(os.getpid())]
        return warm_start.start_process(warm_start.ROW_SOCKET_VARIABLE, command, variables, log.fileno())


def environment_of_child_processes() -> dict[str, str]:
    """Return this process's environment, changed so that programs can import modules of this checkout in any folder.

    Programs of the Python environment are first on PATH, even if the environment is not activated. PyTorch compiles
    extensions with the ninja on PATH, and another version of ninja would compile all of them again. PyTorch also uses
    huge pages for large tensors in host memory, because an optimizer on the host fills more than 100 GiB. If the user
    has set THP_MEM_ALLOC_ENABLE, the variable keeps its value.
    """
    return {
        HUGE_PAGES_VARIABLE: "1",
        **os.environ,
        "PYTHONPATH": _prepend_folder(str(CODE_FOLDER), "PYTHONPATH"),
        "PATH": _prepend_folder(str(Path(sys.executable).parent), "PATH"),
    }


def _prepend_folder(folder: str, variable: str) -> str:
    """Return the value of a variable that lists folders, with ``folder`` before all others."""
    return os.pathsep.join([folder, *filter(None, [os.environ.get(variable)])])


def tagged_processes(row_folder: Path) -> list[psutil.Process]:
    """Return the living processes of the row."""
    return processes.find_tagged(ROW_VARIABLE, str(row_folder.resolve()))


def row_folder_of(pid: int) -> str:
    """Return the folder of the row that a process belongs to; "" for other processes, and for ended ones."""
    return processes.tag_of(pid, ROW_VARIABLE)


def any_row_alive() -> bool:
    """Return whether a process of any row, of this runner or another, is alive on this machine."""
    return bool(processes.find_tagged(ROW_VARIABLE))


def kill(row_folder: Path, within_s: float = 20.0) -> list[int]:
    """Kill every process of the row; return the ids of those still alive after ``within_s`` seconds."""
    return processes.kill_tagged(ROW_VARIABLE, str(row_folder.resolve()), within_s)
