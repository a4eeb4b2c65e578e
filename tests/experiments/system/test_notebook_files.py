"""Files that are not notebooks, wherever the program reads a notebook."""

import json
import os

import nbformat
import pytest

from experiments.errors import InputError
from experiments.notebooks import refresh as refreshing
from experiments.results.schema import NOTEBOOK_FILE, SPEC_FILE
from experiments.runners.local.row_notebook import execute, make_parameters_default
from experiments.system.files import read_notebook
from tests.support.runners import rows as sample_rows


def notebook(**changes) -> str:
    return json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 4} | changes)


def code_cell(**changes) -> dict[str, object]:
    return {"cell_type": "code", "source": "1", "metadata": {}, "outputs": [], "execution_count": None} | changes


def old_notebook(**changes) -> str:
    """Return a notebook of version 3 with one cell."""
    cell = {"cell_type": "code", "input": "1", "language": "python", "outputs": [], "metadata": {}} | changes
    return notebook(nbformat=3, nbformat_minor=0, worksheets=[{"cells": [cell], "metadata": {}}])


BROKEN = {
    "": r"not JSON \(line 1, column 1: Expecting value\)",
    '{"cells": [': "not JSON",
    "[]": r"it has no version \(nbformat\)",
    '{"cells": []}': "it has no version",
    notebook(nbformat="4"): "it has no version",
    notebook(nbformat=99): "Unsupported nbformat version 99",
    notebook(cells=None): "it has no list of cells",
    notebook(cells={"a": 1}): "it has no list of cells",
    notebook(nbformat=3): "it has no list of cells",
    notebook(cells=[code_cell(), 3]): r"cell 2 has no type \(cell_type\)",
    notebook(cells=[{"source": "1"}]): "cell 1 has no type",
    notebook(cells=[code_cell(source=3)]): "the source of cell 1 is neither a text nor a list of lines",
    notebook(cells=[code_cell(source=["a", 3])]): "the source of cell 1 is neither",
    notebook(cells=[{"cell_type": "code"}]): "the source of cell 1 is neither",
    notebook(cells=[code_cell(metadata=[])]): "the metadata of cell 1 are no object",
    old_notebook(metadata=3): "the metadata of cell 1 are no object",
    old_notebook(cell_type="other"): "the source of cell 1 is neither",
    notebook(nbformat=3, worksheets=[{"cells": []}, {"cells": [3]}]): "cell 1 has no type",
    "[" * 100_000: "RecursionError",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:60])
def test_a_file_that_is_not_a_notebook_is_named_with_the_reason(tmp_path, text):
    path = tmp_path / "lab.ipynb"
    path.write_text(text)
    with pytest.raises(InputError, match=f"lab.ipynb: not a Jupyter notebook: .*{BROKEN[text]}"):
        read_notebook(path)


def test_a_file_that_cannot_be_read_as_text_is_named(tmp_path):
    path = tmp_path / "lab.ipynb"
    with pytest.raises(InputError, match=r"lab.ipynb: cannot be read \(No such file or directory\)"):
        read_notebook(path)
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"lab.ipynb: cannot be read \(Not a regular file\)"):
        read_notebook(path)
    path.unlink()
    path.write_bytes(b'{"cells": "\xff"}')
    with pytest.raises(InputError, match=r"lab.ipynb: not a Jupyter notebook: not text in UTF-8"):
        read_notebook(path)


def test_notebooks_of_versions_3_and_4_are_read(tmp_path):
    path = tmp_path / "lab.ipynb"
    for source in ("a = 1\nb", ["a = 1\n", "b"]):
        path.write_text(notebook(cells=[code_cell(source=source)]))
        assert [cell.source for cell in read_notebook(path).cells] == ["a = 1\nb"]
    path.write_text(old_notebook(input=["a = 1\n", "b"]))
    assert [cell.source for cell in read_notebook(path).cells] == ["a = 1\nb"]


def test_a_damaged_file_that_papermill_returns_ends_the_row_s_notebook_with_one_line(tmp_path, monkeypatch, capsys):
    def write_damaged(_, out, *__, **___):
        out.write_text('{"cells": [')

    monkeypatch.setattr("papermill.execute_notebook", write_damaged)
    (tmp_path / SPEC_FILE).write_text(sample_rows.spec("a", size="tiny").model_dump_json())
    assert execute(tmp_path) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / NOTEBOOK_FILE}: not a Jupyter notebook: not JSON")
    assert (out.count("\n"), err) == (1, "")


def test_an_executed_notebook_without_its_parameters_is_an_error(tmp_path):
    (tmp_path / NOTEBOOK_FILE).write_text(notebook(cells=[code_cell()]))
    with pytest.raises(InputError, match="the cell with the parameters"):
        make_parameters_default(tmp_path / NOTEBOOK_FILE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a Jupyter notebook: not JSON"),
        (notebook(), "its first code cell has no line RUN"),
        (notebook(cells=[code_cell()]), "its first code cell has no line RUN"),
    ],
)
def test_a_damaged_notebook_of_a_suite_is_named(tmp_path, text, reason):
    path, run = tmp_path / "single_gpu_blip2.ipynb", "single_gpu_blip2-a100_80gb-full-verdict"
    path.write_text(text)
    with pytest.raises(InputError, match=f"single_gpu_blip2.ipynb: {reason}"):
        refreshing.refresh(path, run, tmp_path / "out.ipynb")


def test_the_project_s_own_notebooks_are_notebooks():
    paths = sorted(refreshing.NOTEBOOKS.glob("*.ipynb"))
    assert len(paths) > 5
    for path in paths:
        assert isinstance(read_notebook(path), nbformat.NotebookNode)
