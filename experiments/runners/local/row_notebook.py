"""Executes the notebook of one row by papermill; this process ends with the runner that started it.

python -m experiments.runners.local.row_notebook ROW_FOLDER WORKER RUNNER_PID
"""

import os
import sys
from pathlib import Path

from experiments.results.schema import NOTEBOOK_FILE, SPEC_FILE
from experiments.system.files import CODE_FOLDER
from experiments.system.signals import exit_with_parent

ROW_NOTEBOOK = CODE_FOLDER / "experiments" / "notebooks" / "row.ipynb"
KERNEL_START_S = 600
"""How long a kernel may take to start: on a shared file system its imports take minutes."""


def execute(row_folder: Path, worker: str) -> int:
    """Execute the row's notebook; return 0 if every cell succeeded, which requires that the row fits."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from experiments.runners.local.warm_kernel import WarmKernelManager

    parameters = {
        "spec": SPEC_FILE,
        "out": ".",
        "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
        "worker": worker,
    }
    try:
        papermill.execute_notebook(
            ROW_NOTEBOOK,
            row_folder / NOTEBOOK_FILE,
            parameters,
            progress_bar=False,
            kernel_name="python3",
            start_timeout=KERNEL_START_S,
            kernel_manager_class=WarmKernelManager,
            cwd=str(row_folder),
        )
    except PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}")
        return 1
    return 0


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[3]))
    sys.exit(execute(Path(sys.argv[1]).resolve(), sys.argv[2]))
