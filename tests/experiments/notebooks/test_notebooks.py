"""The notebooks of the labs: each suite has one, it is complete, and it runs with stored results."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.display import SVG, Markdown
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

import experiments
from experiments.notebooks import lab
from experiments.results.evaluate import claim_rows
from experiments.suites.suite import suite_named, suite_names
from tests.support.results.stored_runs import stored_run

PACKAGE = Path(experiments.__file__).parent
ROOT = PACKAGE.parent
NARRATED = suite_names()
NOTHING_RUNS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from experiments.notebooks import lab
lab.COMMAND = (sys.executable, "-c", "raise SystemExit('ran')")
"""


MIME = {Markdown: "text/markdown", SVG: "image/svg+xml"}
LARGEST_BYTES = 300_000


def notebook_of(name):
    return nbformat.read(PACKAGE / "notebooks" / f"{name}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def rows_of_calls(notebook, method):
    """The rows in each call of the method, by the name of the cell's lab."""
    expressions = [ast.parse(cell.source).body[0].value for cell in code_of(notebook)[1:]]
    return [
        (call.func.value.id, [argument.value for argument in call.args])
        for call in expressions
        if call.func.attr == method
    ]


def labs(notebook):
    """Return the Lab objects that the first cell creates, by variable name."""
    names: dict[str, Any] = {}
    exec(code_of(notebook)[0].source, names)
    return {key: value for key, value in names.items() if isinstance(value, lab.Lab)}


def with_results_folder(place, notebook):
    """Return the notebook with another folder of results instead of the stored run."""
    setup = code_of(notebook)[0]
    setup.source, places = re.subn(r"^RESULTS = .*$", f"RESULTS = {str(place)!r}", setup.source, flags=re.M)
    setup.source, runs = re.subn(r"^(RUN\w*) = .*$", r'\1 = ""', setup.source, flags=re.M)
    assert places == 1
    assert runs >= 1
    return notebook


def run_through(notebook):
    names: dict[str, Any] = {}
    for cell in code_of(notebook):
        exec(cell.source, names)


@pytest.fixture
def shown_output(monkeypatch):
    """The output of the cells; a cell that would run a row fails."""
    blocks: list[Any] = []
    monkeypatch.setattr(lab, "display", blocks.append)
    monkeypatch.setattr(lab, "COMMAND", (sys.executable, "-c", "raise SystemExit('ran')"))
    return blocks


@pytest.mark.parametrize("name", NARRATED)
def test_a_markdown_cell_precedes_each_code_cell(name):
    notebook = notebook_of(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = code_of(notebook)
    before = [one for one, cell in zip(notebook.cells, notebook.cells[1:], strict=False) if cell in code]
    assert len(before) == len(code)
    assert all(one.cell_type == "markdown" for one in before)
    assert all("**Look at**" in one.source for one in before[1:])


@pytest.mark.parametrize("name", NARRATED)
def test_the_outputs_in_a_notebook_are_those_of_the_stored_runs_that_it_names(name, shown_output):
    notebook = notebook_of(name)
    names: dict[str, Any] = {}
    for cell in code_of(notebook):
        shown_output.clear()
        exec(cell.source, names)
        kept_outputs = [data for out in cell.outputs for kind, data in out.data.items() if kind in MIME.values()]
        assert kept_outputs == [block.data for block in shown_output], f"`make notebooks` renews it: {cell.source}"
    runs = [value for key, value in names.items() if key.startswith("RUN")]
    assert all((lab.EVIDENCE / run).is_dir() for run in runs)
    assert len(runs) == len(labs(notebook))


@pytest.mark.parametrize("name", NARRATED)
def test_a_notebook_is_small_and_has_no_path_of_a_machine(name):
    text = (PACKAGE / "notebooks" / f"{name}.ipynb").read_text()
    assert len(text) < LARGEST_BYTES
    assert re.findall(r"/(?:home|root|tmp|Users|mnt|work)/\S*", text) == []
    assert "image/png" not in text
    assert notebook_of(name).metadata.language_info == {"name": "python"}


@pytest.mark.parametrize("name", NARRATED)
def test_a_notebook_shows_every_row_once_in_order_under_its_title(name):
    notebook, suite = notebook_of(name), suite_named(name)
    assert [rows for _, rows in rows_of_calls(notebook, "show")] == [[row.id] for row in suite.rows]
    headings = [cell.source.partition("\n")[0] for cell in notebook.cells if cell.source.startswith("## ")]
    numbered = [heading for heading in headings if heading[3].isdigit()]
    assert numbered == [f"## {number}. {row.title}" for number, row in enumerate(suite.rows, 1)]


@pytest.mark.parametrize("name", NARRATED)
def test_each_row_is_shown_on_a_card_that_has_this_row(name):
    notebook, suite = notebook_of(name), suite_named(name)
    cards = {one: made.choices["card"] for one, made in labs(notebook).items()}
    for one, rows in rows_of_calls(notebook, "show") + rows_of_calls(notebook, "compare"):
        for row in map(suite.row, rows):
            assert cards[one] in (row.cards or ("auto", *suite.cards))


@pytest.mark.parametrize("name", NARRATED)
def test_every_claim_is_shown_with_its_row_or_with_the_rows_that_it_compares(name):
    notebook, suite = notebook_of(name), suite_named(name)
    compared = [rows for _, rows in rows_of_calls(notebook, "compare")]
    for claim in suite.claims:
        alone = len(claim_rows(claim)) == 1
        assert alone or any(lab.compares(claim, rows) for rows in compared), claim.id


@pytest.mark.parametrize("name", NARRATED)
def test_questions_are_numbered_consecutively(name):
    cells = [cell for cell in notebook_of(name).cells if cell.source.startswith("**Questions**")]
    numbers = [line.split(".")[0] for cell in cells for line in cell.source.splitlines()]
    numbers = [int(number) for number in numbers if number.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 10


@pytest.mark.parametrize("size", ["full", "tiny"])
@pytest.mark.parametrize("name", NARRATED)
def test_a_notebook_shows_stored_results_and_runs_nothing(name, size, tmp_path, shown_output):
    for card in suite_named(name).cards:
        stored_run(tmp_path, name, card, run_id=card, size=size)
    notebook = with_results_folder(tmp_path, notebook_of(name))
    run_through(notebook)
    text = "\n".join(block.data for block in shown_output if not isinstance(block, SVG))
    assert [text.count(f"### {row.title}: ") for row in suite_named(name).rows] == [1] * len(suite_named(name).rows)
    assert text.count("**Memory**") == len(rows_of_calls(notebook, "compare"))
    assert "No result yet" not in text
    assert "has not run" not in text
    assert ("| MiB |" in text) == (size == "tiny")


FAILED = [
    "With LoRA the XXL model fits easily, with a good part of the card to spare",
]


def test_a_notebook_can_show_the_stored_runs_of_the_project(shown_output):
    run_through(notebook_of("single_gpu_blip2"))
    text = "\n".join(block.data for block in shown_output if not isinstance(block, SVG))
    assert "emulating" in text
    failed = [line for line in text.splitlines() if line.startswith("- **fail**")]
    assert [line.partition(": ")[2].partition(".")[0] for line in failed] == FAILED
    assert "No result yet" not in text


def test_a_notebook_runs_headless_in_a_kernel(tmp_path):
    name = "multi_gpu_litgpt"
    for card in suite_named(name).cards:
        stored_run(tmp_path, name, card, run_id=card)
    notebook = with_results_folder(tmp_path, notebook_of(name))
    notebook.cells.insert(0, new_code_cell(NOTHING_RUNS))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(PACKAGE / "notebooks")}}).execute()
    outputs = [out for cell in code_of(notebook) for out in cell.outputs]
    assert {out.output_type for out in outputs} == {"display_data"}
    assert any("rank 3" in out.data.get("text/markdown", "") for out in outputs)
    assert any("image/svg+xml" in out.data for out in outputs)
