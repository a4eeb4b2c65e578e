"""The notebook about sizing, and the functions that its cells call. Predictions are fakes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from experiments.notebooks import sizing
from experiments.prediction.custom import CustomTraining
from tests.support.processes.phantom_library import cache_with_library
from tests.support.runners.fake_predictions import Predictor, prediction

NOTEBOOK = Path(sizing.__file__).parent / "sizing.ipynb"
ROOT = Path(__file__).parents[3]
FAKE_PREDICTIONS = """
from experiments.prediction import service
from tests.support.runners.fake_predictions import Predictor
service.predict = Predictor(lambda spec: 60.0 + spec.settings.batch_size)
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def shown_output(monkeypatch):
    """Record the output of the cells. Fake predictions: 60 GiB, and one more GiB per text."""
    monkeypatch.setattr(
        "experiments.prediction.service.predict", Predictor(lambda spec: 60.0 + spec.settings.batch_size)
    )
    displayed: list[Any] = []
    monkeypatch.setattr(sizing, "display", displayed.append)
    return displayed


def labels(chart):
    return re.findall(r'<tspan class="name">(.*?)</tspan>', chart.data)


def bar_sizes(chart):
    """Return the sizes of the drawn parts by name, from the first bar to the last."""
    sizes: dict[str, Any] = {}
    for name, size in re.findall(r"<title>([a-z ]+) ([\d.]+) GiB</title>", chart.data):
        sizes.setdefault(name, []).append(float(size))
    return sizes


def custom_training(**changes):
    return CustomTraining("tiny-llama-1.1b", "a100_80gb", **changes)


def test_the_notebook_runs_headless_from_top_to_bottom_without_pythonpath(notebook, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    first = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first + 1, new_code_cell(FAKE_PREDICTIONS))
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = [out.text for cell in notebook.cells for out in cell.get("outputs", ()) if out.output_type == "stream"]
    assert any("60.00 GiB for the model and 1.00 GiB for each text" in text for text in printed)
    assert any("rule of five 70.0 GiB, predicted 64.0 GiB" in text for text in printed)


def test_the_tracer_finds_its_code_from_any_folder_without_pythonpath(tmp_path):
    cache_with_library(tmp_path / "cache")
    program = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from experiments.prediction import predict\n"
        "with predict._run_tracer(Path('cache'), 1, [], sys.stderr.fileno()) as tracer: sys.exit(tracer.wait())\n"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_notebook_is_stored_without_outputs_and_explains_each_cell(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    before = [one for one, cell in zip(notebook.cells, notebook.cells[1:], strict=False) if cell in code]
    assert len(before) == len(code)
    assert all(one.cell_type == "markdown" for one in before)


def test_the_questions_of_the_sizing_notebook_are_numbered_consecutively(notebook):
    lines = [line for cell in notebook.cells if "uestion" in cell.source for line in cell.source.splitlines()]
    numbers = [int(line.split(".")[0]) for line in lines if line.split(".")[0].isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 10


def test_the_chart_of_peaks_has_labels_and_reserved_memory(shown_output):
    found = sizing.show_peaks({"one": custom_training(), "four": custom_training(batch=4)})
    assert [one.peak_gib for one in found.values()] == [61.0, 64.0]
    chart, table = shown_output
    bars = bar_sizes(chart)
    assert bars["activations"] == [5.0, 8.0]
    assert bars["reserved"] == [62.0, 65.0]
    assert labels(chart) == ["one", "four"]
    assert "| four | 14.00 | 14.00 | 28.00 | 8.00 | 0.00 | 64.00 | 65.00 | backward |" in table.data


def test_the_chart_of_a_step_has_a_bar_for_each_point_of_the_step(shown_output):
    found = sizing.show_memory_within_a_step(custom_training(batch=2))
    (chart,) = shown_output
    assert found.peak_gib == 62.0
    assert labels(chart) == [f"step 1, {shot.point}" for shot in found.memory.snapshots]
    assert bar_sizes(chart)["gradients"] == [14.0, 14.0]
    assert bar_sizes(chart)["optimizer"] == [28.0]


def test_the_parts_of_a_bar_add_up_to_the_peak():
    one = prediction(custom_training().spec, needed_gib=71.5)
    chart = sizing.stacked_bars({"one": sizing._parts_at_peak(one)})
    assert sum(size for (size,) in bar_sizes(chart).values()) == pytest.approx(one.peak_gib)
