"""Write the labs' notebooks with the outputs of stored runs.

As a program, write the outputs of every lab's notebook of this folder anew, each with the runs that it names.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from experiments.errors import InputError
from experiments.notebooks.narrative import EVIDENCE, folder_named
from experiments.suites.suite import suite_names

NOTEBOOKS = Path(__file__).parent
RUN_LINES = re.compile(r'^(RUN\w*) = "[^"]*".*$', re.MULTILINE)
CELL_TIMEOUT_S = 120


def refresh(notebook: Path, run: str, target: Path) -> None:
    """Execute ``notebook`` with every cell showing ``run``, and write it with its outputs to ``target``.

    run: the name of a run that is stored in this project. Rows that the run lacks are shown without a result; nothing
    is run. Raises InputError for an unknown run, and for one of another suite than the notebook's.
    """
    suite = folder_named(run, EVIDENCE).read_run().suite
    if suite != notebook.stem:
        raise InputError(f"--from {run}: a run of {suite}; allowed for {notebook.name}: a run of {notebook.stem}")
    document = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    setup = next(cell for cell in document.cells if cell.cell_type == "code")
    setup.source, found = RUN_LINES.subn(rf'\1 = "{run}"  # kept with the project', setup.source)
    assert found
    execute(document)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, target)  # type: ignore[no-untyped-call]


def execute(document: Any) -> None:
    """Execute a notebook's document in place. Keep its metadata, which would otherwise name this machine's Python."""
    metadata = document.metadata.copy()
    place = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(document, timeout=CELL_TIMEOUT_S, record_timing=False, resources=place).execute()
    document.metadata = metadata


def main() -> None:
    """Write the outputs of each lab's notebook anew."""
    for path in (NOTEBOOKS / f"{suite}.ipynb" for suite in suite_names()):
        document = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        execute(document)
        nbformat.write(document, path)  # type: ignore[no-untyped-call]
        print(path)


if __name__ == "__main__":
    main()
