"""The notebook of one row: its parameters are the row's settings, and papermill runs it with others."""

import ast
import json
import os
import subprocess
import sys
from typing import Any

import nbformat
import papermill
import pytest

from experiments.errors import InputError
from experiments.notebooks import parameters, row
from experiments.notebooks.parameters import AS_STATED, PARAMETERS, parameters_in, spec_from_parameters
from experiments.results.schema import RESULT_FILE
from experiments.runners.local.warm_kernel import ROW_NOTEBOOK
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.suite import suite_named
from experiments.system.files import CODE_FOLDER
from tests.support.results import in_memory
from tests.support.runners import rows as sample_rows

SUITE, CARD = "single_gpu_blip2", "a100_80gb"


def parameters_cell(notebook):
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell.source


@pytest.fixture(scope="module")
def default_parameters():
    """Return the default values of the parameters cell."""
    values: dict[str, Any] = {}
    exec(parameters_cell(nbformat.read(ROW_NOTEBOOK, as_version=4)), values)
    return {name: value for name, value in values.items() if name != "__builtins__"}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(parameters, "this_machine", sample_rows.node)


def test_every_parameter_is_in_the_parameters_cell_with_its_description():
    lines = [line for line in parameters_cell(nbformat.read(ROW_NOTEBOOK, as_version=4)).splitlines() if " = " in line]
    fields = {name: (RowSpec if name in RowSpec.model_fields and name != "model" else Settings) for name in PARAMETERS}
    described = {name: model.model_fields[name].description for name, model in fields.items()}
    assert {line.partition(" = ")[0]: line.partition("  # ")[2] for line in lines} == described


def test_the_parameters_cell_selects_a_row_of_a_lab_with_its_settings(default_parameters):
    lab = suite_named(SUITE)
    spec = spec_from_parameters(default_parameters)
    assert spec.settings == lab.settings(lab.row("reduced-batch"), CARD)
    assert (spec.card, spec.size, spec.data) == (CARD, "tiny", "synthetic")


def test_parameters_change_the_lab_s_settings_and_the_global_batch_is_computed_from_them(default_parameters):
    given = {"card": "h100_94gb", "batch_size": 4, "accumulate": 2, "lora": None, "precision": "bf16-true"}
    settings = spec_from_parameters(default_parameters | {"row": "xxl-lora"} | given).settings
    assert (settings.batch_size, settings.accumulate, settings.global_batch_size) == (4, 2, 8)
    assert (settings.lora, settings.precision, settings.model) == (None, "bf16-true", "blip2-flan-t5-xxl")


def test_the_parameters_of_a_row_give_the_same_row_again(default_parameters):
    suite = suite_named("multi_gpu_litgpt")
    for one in suite.rows_for(CARD):
        run = in_memory.run(one.id, suite=suite.suite, recipe_version=suite.version, size="tiny", weights="random")
        spec = run.spec(suite, one.id)
        assert spec.parameters.keys() == {*PARAMETERS}
        assert spec_from_parameters(json.loads(json.dumps(spec.parameters))) == spec
        assert spec_from_parameters(spec.parameters, sample_rows.spec()).settings == spec.settings


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("suite", "blip", "unknown suite 'blip'; allowed: "),
        ("row", "reduced-bach", "unknown row 'reduced-bach'; allowed: "),
        ("card", "t4", "suite single_gpu_blip2: unknown card 't4'; allowed: "),
        ("size", "huge", "single_gpu_blip2: size = 'huge': allowed: 'full' or 'tiny'"),
        (
            "weights",
            "pretrained",
            "weights pretrained: a tiny model has no pretrained weights; allowed: random, or size full",
        ),
        ("batch_size", 0, "single_gpu_blip2/reduced-batch: batch_size = 0: allowed: a whole number above 0"),
        ("batch_size", "4", "batch_size = '4': allowed: a whole number above 0"),
        ("accumulate", 3, "accumulate = 3: does not divide the 32 batches of an epoch"),
        ("precision", "bf17", "precision = 'bf17': allowed: '32-true', 'bf16-true' or 'bf16-mixed'"),
        ("model", "gpt-5", "unknown model 'gpt-5'; allowed: "),
        ("engine", "litgpt", "model = 'blip2-opt-2.7b': LitGPT does not have this model; allowed: "),
        ("lr", -1.0, "lr = -1.0: "),
    ],
)
def test_an_invalid_value_is_an_error_in_one_line(default_parameters, name, value, words):
    with pytest.raises(InputError) as caught:
        spec_from_parameters(default_parameters | {name: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelled_parameter_is_not_ignored(default_parameters):
    assert parameters_in(default_parameters | {"os": os, "_x": 1, "In": []}, {"In": []}) == default_parameters
    with pytest.raises(InputError, match=r"^unknown parameter 'batchsize'; allowed: suite, .* mean batch_size\?$"):
        parameters_in(default_parameters | {"batchsize": 4}, {})


def result_of(spec, outcome="fits"):
    return in_memory.result("a", outcome).model_copy(update={"spec": spec})


def test_the_verdict_compares_the_outcome_with_the_expected_one(default_parameters):
    spec = spec_from_parameters(default_parameters | {"card": CARD, "size": "full"})
    assert (
        "- **pass**, measured: Reduced batch size: fits (fits)"
        in row.verdicts_in_markdown(result_of(spec)).splitlines()
    )
    assert "- **fail**, measured: Reduced batch size: fits (" in row.verdicts_in_markdown(result_of(spec, "oom"))
    tiny = row.verdicts_in_markdown(result_of(spec_from_parameters(default_parameters)))
    assert "**not evaluated**: Reduced batch size: fits (a tiny model does not show what fits the card)" in tiny


def test_no_statement_applies_to_changed_settings_or_to_an_unknown_lab(default_parameters):
    spec = spec_from_parameters(default_parameters | {"batch_size": 4})
    assert row.verdicts_in_markdown(result_of(spec)) == (
        "Settings differ from the lab's, so its statements do not apply: batch_size 16 -> 4, global_batch_size 16 -> 4."
    )
    assert "unknown suite 'lab'" in row.verdicts_in_markdown(result_of(sample_rows.spec()))


def run_papermill(folder, *options):
    """Run the notebook with the command `papermill`; return its exit code, last line and outputs."""
    command = [sys.executable, "-m", "papermill", str(ROW_NOTEBOOK), "out.ipynb", "--no-progress-bar", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TESTBED_ROW")}
    environment |= {"PYTHONPATH": str(CODE_FOLDER), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    notebook = nbformat.read(folder / "out.ipynb", as_version=4)
    return (
        done.returncode,
        done.stderr.strip().splitlines()[-1],
        [output for cell in notebook.cells for output in cell.get("outputs", ())],
    )


def text_of(outputs):
    return "".join(output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs)


def test_a_row_runs_with_another_batch_size(tmp_path):
    settings = ("batch_size", "2"), ("precision", "bf16-true"), ("train_samples", "8"), ("workers", "0")
    code, _, outputs = run_papermill(tmp_path, *(part for one in settings for part in ("-p", *one)))
    text = text_of(outputs)
    assert code == 0
    assert {"[cfg] batch_size = 2", "[cfg] precision = bf16-true", "[cfg] lr = 5e-06"} <= {*text.splitlines()}
    assert "# FITS" in text
    assert "batch_size 16 -> 2" in text
    points = [f"| {point} |" for point in ("before forward", "after forward", "after backward", "after optimizer step")]
    assert [point in text for point in points] == [True] * 4
    result = json.loads((tmp_path / "manual-runs" / SUITE / "reduced-batch" / RESULT_FILE).read_text())
    assert result["spec"]["settings"]["batch_size"] == 2
    assert "| loss | " in text


def test_a_wrong_value_is_reported_in_one_line_of_the_notebook(tmp_path):
    code, last, outputs = run_papermill(tmp_path, "-p", "optimizer", "adam")
    allowed = "'adamw', 'sgd', 'adam_8bit', 'adamw_cpu' or 'deepspeed_cpu'"
    line = f"single_gpu_blip2/reduced-batch: optimizer = 'adam': allowed: {allowed}"
    (error,) = outputs
    assert (code, last, error["traceback"]) == (1, line, [line])
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


def test_an_executed_notebook_runs_again_with_other_values(tmp_path):
    """The notebook is one that the runner executed; papermill adds the new values after those of the row."""
    from experiments.runners.local.row_notebook import make_parameters_default

    executed, again = tmp_path / "notebook.ipynb", tmp_path / "again.ipynb"
    papermill.execute_notebook(
        ROW_NOTEBOOK, executed, sample_rows.spec().parameters, prepare_only=True, progress_bar=False
    )
    make_parameters_default(executed)
    papermill.execute_notebook(executed, again, {"batch_size": 64}, prepare_only=True, progress_bar=False)
    cells = [cell.source for cell in nbformat.read(again, as_version=4).cells if cell.cell_type == "code"]
    names = {node.targets[0].id for node in ast.parse(cells[0]).body}
    assert names == {*PARAMETERS}
    assert AS_STATED not in cells[0]
    assert cells[1].splitlines()[1:] == ["batch_size = 64"]
