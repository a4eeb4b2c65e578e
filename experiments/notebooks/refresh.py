"""Write the labs' notebooks with the outputs of stored runs.

As a program, update every lab's notebook in this folder: its outputs, from the runs that the notebook names, and the
cell that states how to open it.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from experiments.errors import InputError
from experiments.notebooks.lab import EVIDENCE, folder_named
from experiments.suites.suite import suite_names
from experiments.system.files import CODE_FOLDER, read_notebook

NOTEBOOKS = Path(__file__).parent
WITHOUT_LAB = ("sizing",)
"""Notebooks that show no stored run. They are stored without outputs."""
OPENING_TAG = "how-to-open"
GITHUB, COLAB = "https://github.com/", "https://colab.research.google.com/"
RUN_LINES = re.compile(r'^(RUN\w*) = "[^"]*".*$', re.MULTILINE)
CELL_TIMEOUT_S = 120


def refresh(notebook: Path, run: str, target: Path) -> None:
    """Execute ``notebook`` so that every cell shows the run ``run``; write the notebook with its outputs to ``target``.

    run: the name of a run that is stored in this project. Rows that the run lacks are shown without a result; nothing
    is run. Raises InputError if ``run`` is unknown, if its suite is not the notebook's, or if ``notebook`` is not a
    notebook.
    """
    suite = folder_named(run, EVIDENCE).read_run().suite
    if suite != notebook.stem:
        raise InputError(f"--from {run}: a run of {suite}; allowed for {notebook.name}: a run of {notebook.stem}")
    document = read_notebook(notebook)
    setup = next((cell for cell in document.cells if cell.cell_type == "code"), None)
    if not (setup and RUN_LINES.search(setup.source)):
        raise InputError(f'{notebook}: its first code cell has no line RUN = "..."')
    setup.source = RUN_LINES.sub(rf'\1 = "{run}"  # kept with the project', setup.source)
    execute(document)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, target)  # type: ignore[no-untyped-call]


def execute(document: Any) -> None:
    """Execute a notebook's document in place. Keep its metadata, which would otherwise name this machine's Python."""
    metadata = document.metadata.copy()
    place = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(document, timeout=CELL_TIMEOUT_S, record_timing=False, resources=place).execute()
    document.metadata = metadata


def repository_url() -> str:
    """Return the public address of the project, Repository of [project.urls] in pyproject.toml; "" if it has none."""
    project = tomllib.loads((CODE_FOLDER / "pyproject.toml").read_text())["project"]
    return str(project.get("urls", {}).get("Repository", "")).removesuffix("/").removesuffix(".git")


def opening_instructions(notebook: str, address: str) -> str:
    """Return how to open a notebook, in Markdown: on this computer, on a leased node, and in Colab.

    address: URL of the project's repository; only a repository on GitHub gets a link to Colab.
    """
    command = f"testbed notebook {notebook}"
    text = f"**Open this notebook** on your computer: `{command} --site local`. On a leased node: `{command}`."
    if not address.startswith(GITHUB):
        return f"{text} Google Colab can use the node as its local runtime."
    path = (NOTEBOOKS / f"{notebook}.ipynb").relative_to(CODE_FOLDER)
    badge = (
        f"[![Open in Colab]({COLAB}assets/colab-badge.svg)]({COLAB}github/{address[len(GITHUB) :]}/blob/main/{path})"
    )
    return f"{badge}\n\n{text} In Colab, first run `!git clone {address} testbed` and `%cd testbed` in a cell."


def write_opening_cell(document: Any, notebook: str) -> None:
    """Write how to open the notebook into its tagged cell, or add this cell as the second one."""
    tagged = [cell for cell in document.cells if OPENING_TAG in cell.metadata.get("tags", ())]
    if not tagged:
        cell = nbformat.v4.new_markdown_cell(metadata={"tags": [OPENING_TAG]}, id=OPENING_TAG)  # type: ignore[no-untyped-call]
        document.cells.insert(1, cell)
        tagged = [cell]
    tagged[0].source = opening_instructions(notebook, repository_url())


def main() -> None:
    """Update the outputs of each lab's notebook, and the cell that states how to open it."""
    for name in (*suite_names(), *WITHOUT_LAB):
        path = NOTEBOOKS / f"{name}.ipynb"
        document = read_notebook(path)
        write_opening_cell(document, name)
        if name not in WITHOUT_LAB:
            execute(document)
        nbformat.write(document, path)  # type: ignore[no-untyped-call]
        print(path)


if __name__ == "__main__":
    main()
