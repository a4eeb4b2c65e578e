"""Execute the notebook of one row with papermill. This process ends when the runner that started it ends.

python -m experiments.runners.local.row_notebook ROW_FOLDER RUNNER_PID
"""

import sys
from pathlib import Path

from experiments.errors import InputError
from experiments.results.schema import NOTEBOOK_FILE, SPEC_FILE
from experiments.suites.row_spec import RowSpec
from experiments.system.files import read_notebook
from experiments.system.signals import exit_with_parent

KERNEL_START_LIMIT_S = 600
"""Maximum seconds for the start of a kernel: on a shared file system, its imports take minutes."""


def execute(row_folder: Path) -> int:
    """Execute the row's notebook; return 0 if every cell succeeded, else 1. A cell fails if the row does not fit.

    The parameters of the notebook come from spec.json. The kernel is killed after the last cell, when its output is
    complete. An orderly shutdown would take 0.2 s, and sometimes Jupyter's whole time limit of 2.5 s.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from experiments.runners.local.warm_kernel import ROW_NOTEBOOK, WarmKernelManager

    spec = RowSpec.model_validate_json((row_folder / SPEC_FILE).read_bytes())
    try:
        papermill.execute_notebook(
            ROW_NOTEBOOK,
            row_folder / NOTEBOOK_FILE,
            spec.parameters,
            progress_bar=False,
            kernel_name="python3",
            start_timeout=KERNEL_START_LIMIT_S,
            kernel_manager_class=WarmKernelManager,
            shutdown_kernel="immediate",
            cwd=str(row_folder),
        )
    except PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}")
        code = 1
    else:
        code = 0
    try:
        make_parameters_default(row_folder / NOTEBOOK_FILE)
    except InputError as error:
        print(error)
        code = 1
    return code


def make_parameters_default(notebook: Path) -> None:
    """Replace the default parameters of ``notebook`` by the parameters with which it was executed.

    papermill can then run the notebook again with other values for some parameters. Raises InputError if the file is
    not a notebook that papermill has executed.
    """
    import nbformat

    document = read_notebook(notebook)
    document.cells = [cell for cell in document.cells if "parameters" not in cell.metadata.get("tags", ())]
    injected = next((cell for cell in document.cells if "injected-parameters" in cell.metadata.get("tags", ())), None)
    if injected is None:
        raise InputError(f"{notebook}: the cell with the parameters (tag injected-parameters) is missing")
    injected.metadata.tags = ["parameters"]
    nbformat.write(document, notebook)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    exit_with_parent(int(sys.argv[2]))
    sys.exit(execute(Path(sys.argv[1]).resolve()))
