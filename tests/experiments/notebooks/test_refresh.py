"""Write the outputs of one stored run into a notebook."""

import nbformat
import pytest

from experiments.cli.app import main
from experiments.notebooks.refresh import OPENING_TAG, WITHOUT_LAB, opening_instructions, refresh, repository_url
from experiments.suites.suite import suite_named, suite_names
from experiments.system.files import CODE_FOLDER

RUN = "multi_gpu_litgpt-v100_32gb-full-verdict"
NOTEBOOKS = CODE_FOLDER / "experiments" / "notebooks"


def test_a_refreshed_notebook_has_outputs_of_the_named_run_in_any_folder_without_pythonpath(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "shown" / "multi_gpu_litgpt.ipynb"
    refresh(NOTEBOOKS / "multi_gpu_litgpt.ipynb", RUN, target)
    code = [cell for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"display_data"}
    assert all(cell.outputs for cell in code[1:])
    assert any("image/svg+xml" in output.data for output in outputs)
    text = "\n".join(output.data.get("text/markdown", "") for output in outputs)
    assert text.count(f"one run, `{RUN}`") == 2
    other = next(row for row in suite_named("multi_gpu_litgpt").rows if row.cards == ("a100_80gb",))
    assert f"### {other.title}: not in this run" in text
    assert nbformat.read(target, as_version=4).metadata.language_info == {"name": "python"}


@pytest.mark.parametrize(
    ("name", "run", "named"),
    [
        ("single_gpu_blip2", RUN, ("a run of multi_gpu_litgpt", "a run of single_gpu_blip2")),
        ("single_gpu_blip2", "nope", ("nope", "single_gpu_blip2-a100_80gb-full-verdict")),
        ("nope", RUN, ("nope", "sizing")),
    ],
)
def test_a_run_of_another_lab_than_that_of_the_notebook_is_rejected(name, run, named, capsys):
    assert main(["notebook", name, "--from", run]) == 2
    error = capsys.readouterr().err
    assert all(" ".join(words.split()) in " ".join(error.split()) for words in named)


@pytest.mark.parametrize("name", [*suite_names(), *WITHOUT_LAB])
def test_a_notebook_says_how_to_open_it(name):
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    assert OPENING_TAG in cells[1].metadata.tags
    assert cells[1].source == opening_instructions(name, repository_url())
    assert f"`testbed notebook {name} --site local`" in cells[1].source


def test_a_badge_links_to_a_file_of_the_repository_that_pyproject_names():
    for address in ("", "https://git.example.org/course/testbed"):
        assert "colab.research" not in opening_instructions("sizing", address)
    text = opening_instructions("sizing", "https://github.com/course/testbed")
    link = text.partition("](")[2].partition("](")[2].partition(")")[0]
    place, _, path = link.partition("/blob/main/")
    assert place == "https://colab.research.google.com/github/course/testbed"
    assert (CODE_FOLDER / path).is_file()
    assert "git clone https://github.com/course/testbed testbed" in text


def test_the_option_from_without_a_notebook_is_rejected(capsys):
    assert main(["notebook", "--from", RUN]) == 2
    assert "NOTEBOOK" in capsys.readouterr().err
