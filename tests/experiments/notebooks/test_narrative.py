"""The narrative notebook, and the cells' helper on a folder of results made here."""

import sys
from pathlib import Path

import nbformat
import pytest

from experiments.errors import InputError
from experiments.notebooks import narrative
from experiments.recipe import suite_named
from experiments.result import RESULT_FILE
from experiments.run import RunFolder
from tests.experiments.factory import STAND_IN, result, run, shot

NAME = "single_gpu_blip2"
NOTEBOOK = Path(narrative.__file__).parent / f"{NAME}.ipynb"
POINTS = ("before forward", "after forward", "after backward", "after optimizer step")


def made(place, row, run_id="one", outcome="fits", asked=(), **choices):
    """A folder of a run of the suite for ``row`` and those asked for besides, with the result of ``row`` alone."""
    started = run(row, *asked, run_id=run_id, **{"suite": NAME, **choices})
    folder = RunFolder(place / run_id)
    folder.write_run(started)
    folder.row(row).mkdir(parents=True)
    shots = tuple(shot(point, params_gib=13.95, peak_gib=60.0) for point in POINTS)
    got = result("a", outcome, device=STAND_IN, shots=shots, speed={}, memory={"peak_gib": 60.0})
    spec = got.spec.model_copy(update={"row": row, "suite": NAME})
    (folder.row(row) / RESULT_FILE).write_text(got.model_copy(update={"spec": spec}).model_dump_json())
    return folder


@pytest.fixture
def shown(monkeypatch):
    """What the cells display, in Markdown."""
    blocks = []
    monkeypatch.setattr(narrative, "display", lambda block: blocks.append(block.data))
    return blocks


@pytest.fixture
def no_command(monkeypatch):
    monkeypatch.setattr(narrative, "COMMAND", (sys.executable, "-c", "raise SystemExit('ran')"))


@pytest.mark.usefixtures("no_command")
def test_a_kept_result_is_shown_with_its_memory_and_verdicts(tmp_path, shown):
    made(tmp_path, "baseline", asked=("xxl",))
    narrative.suite(NAME, results=str(tmp_path))("baseline")
    assert shown[0].startswith("### Baseline: fits\n")
    for part in ("standing in for a100_80gb", *POINTS, "| 13.95 |", "samples/s"):
        assert part in shown[0]
    assert "- **did not hold**: Baseline: out of GPU memory (a ended as fits)" in shown[0]
    assert "take close to 14 GB. (baseline: 13.9 GiB)" in shown[0]
    assert (
        "- **not judged**: A smaller batch needs substantially less memory for activations. (reduced-batch" in shown[0]
    )
    assert "Even larger model" not in shown[0]


@pytest.mark.usefixtures("no_command")
def test_the_newest_result_under_the_choices_is_shown(tmp_path, shown):
    made(tmp_path, "baseline", "old", outcome="oom", started_at="2026-11-20T00:00:00+00:00", size="tiny")
    made(tmp_path, "baseline", "new", started_at="2026-11-21T00:00:00+00:00")
    made(tmp_path, "xxl", "newest", started_at="2026-11-22T00:00:00+00:00")
    made(tmp_path, "baseline", "other", outcome="oom", started_at="2026-11-23T00:00:00+00:00", suite="other")
    (tmp_path / "latest").symlink_to("old")
    narrative.suite(NAME, results=str(tmp_path), size="auto")("baseline")
    narrative.suite(NAME, results=str(tmp_path), size="tiny")("baseline")
    assert [block.splitlines()[0] for block in shown] == ["### Baseline: fits", "### Baseline: out of GPU memory"]


def test_a_row_without_a_result_is_run_and_what_it_prints_is_shown(tmp_path, shown, monkeypatch, capsys):
    kept = made(tmp_path / "elsewhere", "xxl-sgd").path
    script = tmp_path / "command.py"
    script.write_text(
        "import shutil, sys\n"
        "print(*sys.argv[1:])\n"
        f"shutil.copytree({str(kept)!r}, sys.argv[sys.argv.index('--results') + 1] + '/one')\n"
    )
    monkeypatch.setattr(narrative, "COMMAND", (sys.executable, str(script)))
    results = tmp_path / "results"
    narrative.suite(NAME, results=str(results), card="a100_80gb", size="auto")("xxl-sgd")
    said = f"run {NAME} --row xxl-sgd --results {results} --card a100_80gb --size auto\n"
    assert capsys.readouterr().out == said
    assert shown[0].startswith("### Optimizer without state: fits")


def test_a_command_that_leaves_no_result_is_an_error_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(narrative, "COMMAND", (sys.executable, "-c", "raise SystemExit(2)"))
    with pytest.raises(RuntimeError, match="xxl has no result; the command above ended with code 2"):
        narrative.suite(NAME, results=str(tmp_path))("xxl")


@pytest.mark.usefixtures("no_command")
def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown suite 'blip2'"):
        narrative.suite("blip2")
    with pytest.raises(InputError, match="unknown row 'base'"):
        narrative.suite(NAME, results=str(tmp_path))("base")


def test_the_notebook_tells_every_row_once_and_in_order():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [cell.source for cell in code[1:]] == [f'show("{row.id}")' for row in suite_named(NAME).rows]
    told = [before for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False) if cell in code[1:]]
    assert all(cell.cell_type == "markdown" and len(cell.source) > 200 for cell in told)
    assert [cell.source.partition("\n")[0] for cell in told] == [
        f"## {number}. {row.title}" for number, row in enumerate(suite_named(NAME).rows, 1)
    ]


def test_the_notebooks_first_cell_gives_the_function_that_shows():
    first = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    names = {}
    exec(first.source, names)
    assert callable(names["show"])
