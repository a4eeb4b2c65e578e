"""Functions that the notebooks of the labs call, with invented results."""

import re
import sys

import pytest
from IPython.display import SVG

from experiments.errors import InputError
from experiments.notebooks import lab
from experiments.notebooks.lab import Lab
from experiments.results.memory_parts import STEP_POINTS
from experiments.results.run_folder import RunFolder
from experiments.suites.suite import suite_named
from tests.support.results.in_memory import result, run
from tests.support.results.stored_runs import stored_run, write_result
from tests.support.runners.fake_predictions import prediction

NAME = "single_gpu_blip2"
MULTI = "multi_gpu_litgpt"
CARD = "a100_80gb"


def run_with_result_of(place, row, run_id="one", outcome="fits", asked=(), **choices):
    """Return the folder of a run that has only the result of ``row``; asked: other rows that were requested."""
    folder = stored_run(place, choices.pop("suite", NAME), CARD, row, run_id=run_id, **choices)
    folder.write_run(folder.read_run().model_copy(update={"rows": (row, *asked)}))
    write_result(
        folder, folder.results()[row].model_copy(update={"outcome": outcome, "reason": f"{row} ended as {outcome}"})
    )
    return folder


def labels(chart):
    return re.findall(r'<tspan class="name">(.*?)</tspan>', chart)


@pytest.fixture
def shown_output(monkeypatch):
    """The output of the cells: blocks of Markdown, and figures by the labels of their bars."""
    blocks = []
    monkeypatch.setattr(
        lab,
        "display",
        lambda block: blocks.append(labels(block.data) if isinstance(block, SVG) else block.data),
    )
    return blocks


@pytest.fixture
def no_command(monkeypatch):
    monkeypatch.setattr(lab, "COMMAND", (sys.executable, "-c", "raise SystemExit('ran')"))


@pytest.mark.usefixtures("no_command")
def test_a_stored_result_is_shown_with_its_memory_and_verdicts(tmp_path, shown_output):
    run_with_result_of(tmp_path, "baseline", asked=("xxl",))
    Lab(NAME, results=str(tmp_path)).show("baseline")
    assert shown_output[0].startswith("### Baseline: fits\n")
    for part in ("emulating a100_80gb", *STEP_POINTS, "| 14.00 |"):
        assert part in shown_output[0]
    assert "- **fail**, emulated: Baseline: out of GPU memory (baseline ended as fits)" in shown_output[0]
    assert "take close to 14 GB. (baseline: parameters 14 GiB)" in shown_output[0]
    assert "A smaller batch" not in shown_output[0], "a claim that compares rows belongs to compare"
    assert "Even larger model" not in shown_output[0]


@pytest.mark.usefixtures("no_command")
def test_the_newest_result_with_the_chosen_options_is_shown(tmp_path, shown_output):
    run_with_result_of(tmp_path, "baseline", "old", outcome="oom", started_at="2026-11-20T00:00:00+00:00", size="tiny")
    run_with_result_of(tmp_path, "baseline", "new", started_at="2026-11-21T00:00:00+00:00")
    run_with_result_of(tmp_path, "xxl", "newest", started_at="2026-11-22T00:00:00+00:00")
    run_with_result_of(
        tmp_path,
        "tiny-baseline",
        "other",
        outcome="oom",
        started_at="2026-11-23T00:00:00+00:00",
        suite="single_gpu_litgpt",
    )
    (tmp_path / "latest").symlink_to("old")
    Lab(NAME, results=str(tmp_path), size="auto").show("baseline")
    Lab(NAME, results=str(tmp_path), size="tiny").show("baseline")
    assert [block.splitlines()[0] for block in shown_output] == [
        "### Baseline: fits",
        "### Baseline: out of GPU memory",
    ]


def test_a_row_without_a_result_is_run_and_the_output_of_its_command_is_shown(
    tmp_path, shown_output, monkeypatch, capsys
):
    stored_run = run_with_result_of(tmp_path / "elsewhere", "xxl-sgd").path
    script = tmp_path / "command.py"
    script.write_text(
        "import shutil, sys\n"
        "print(*sys.argv[1:])\n"
        f"shutil.copytree({str(stored_run)!r}, sys.argv[sys.argv.index('--results') + 1] + '/one')\n"
    )
    monkeypatch.setattr(lab, "COMMAND", (sys.executable, str(script)))
    results = tmp_path / "results"
    Lab(NAME, results=str(results), card="a100_80gb", size="auto").show("xxl-sgd")
    expected = f"run {NAME} --row xxl-sgd --results {results} --card a100_80gb --size auto\n"
    assert capsys.readouterr().out == expected
    assert shown_output[0].startswith("### Optimizer without state: fits")


def test_a_command_that_writes_no_result_is_an_error_with_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "COMMAND", (sys.executable, "-c", "raise SystemExit(2)"))
    with pytest.raises(RuntimeError, match="xxl has no result; the command above ended with exit code 2"):
        Lab(NAME, results=str(tmp_path)).show("xxl")


@pytest.mark.usefixtures("no_command")
def test_unknown_names_are_rejected(tmp_path):
    with pytest.raises(InputError, match="unknown suite 'blip2'"):
        Lab("blip2")
    with pytest.raises(InputError, match="unknown row 'base'"):
        Lab(NAME, results=str(tmp_path)).show("base")


@pytest.mark.usefixtures("no_command")
def test_a_row_of_several_ranks_has_a_table_line_for_each_rank(tmp_path, shown_output):
    stored_run(tmp_path, MULTI, CARD, "7b-4gpu-ddp")
    Lab(MULTI, results=str(tmp_path)).show("7b-4gpu-ddp")
    lines = [line.split(" | ") for line in shown_output[0].splitlines() if line.startswith("| rank")]
    assert [line[0] for line in lines] == ["| rank 0", "| rank 1", "| rank 2", "| rank 3"]
    assert "| 69.00 | 303 |" in shown_output[0]
    assert "| samples/s |" in shown_output[0]
    assert "| 40.0% | 15.0% | 5.0% |" in shown_output[0]
    assert "4 x NVIDIA H200" in shown_output[0]


@pytest.mark.usefixtures("no_command")
def test_compared_rows_show_settings_memory_speed_and_the_claims_about_them(tmp_path, shown_output):
    stored_run(tmp_path, MULTI, CARD)
    Lab(MULTI, results=str(tmp_path)).compare("7b-1gpu", "7b-4gpu-ddp")
    settings, bars, tables, stated = shown_output
    assert "|  | global_batch_size | devices | strategy |" in settings
    assert bars == [f"{row}, {point}" for row in ("7b-1gpu", "7b-4gpu-ddp") for point in STEP_POINTS]
    assert "| 7B on one GPU | fits | 14.00 | 14.00 | 28.00 | 10.00 | 66.00 | 66.00 |" in tables
    assert "| 7B on four GPUs, DDP | fits | 14.00 | 14.00 | 28.00 | 13.00 | 69.00 | 69.00 |" in tables
    assert "| 7B on four GPUs, DDP | 4 | 16 | 0.5 | 4 | 1 | 25.0% | 40.0% | 15.0% | 5.0% |" in tables
    assert "- **pass**, emulated: Under DDP, every GPU has the whole model" in stated
    assert "FSDP" not in stated


@pytest.mark.usefixtures("no_command")
def test_variants_are_compared_only_if_they_and_their_original_row_have_results(tmp_path, shown_output):
    lab = Lab("beyond", results=str(tmp_path))
    lab.changes()
    assert shown_output == ["No variant of a row has a result yet."]
    stored_run(tmp_path, "beyond", CARD, "opt", "opt-8bit", "opt-offload", "xxl-cpu")
    lab.changes()
    head, _, *lines = shown_output[1].splitlines()
    assert head == "| GiB | change | outcome | peak | samples/s | cost |"
    assert [line.split(" | ")[0] for line in lines] == [
        "| OPT-2.7B, batch 32, as taught",
        "| OPT-2.7B, 8-bit Adam",
        "| OPT-2.7B, activations in host memory",
    ]
    assert " | optimizer adam_8bit | fits | " in lines[1]
    assert " | activation_offload True | fits | " in lines[2]
    assert lines[2].endswith("| Same arithmetic. Activations go through host memory. |")


@pytest.mark.usefixtures("no_command")
def test_rows_without_results_are_compared_by_settings_and_stated_values(tmp_path, shown_output):
    Lab(MULTI, results=str(tmp_path)).compare("7b-1gpu", "7b-4gpu-ddp")
    settings, nothing, stated = shown_output
    assert "strategy" in settings
    assert nothing == "None of these has a result yet: 7b-1gpu, 7b-4gpu-ddp."
    claims = [claim.says for claim in suite_named(MULTI).claims if claim.id.startswith("ddp-saves")]
    assert f"- {claims[0]}" in stated.splitlines()


@pytest.mark.usefixtures("no_command")
def test_rows_are_compared_within_the_run_that_has_results_of_most_of_them(tmp_path, shown_output):
    rows = ("reduced-batch", "grad-accumulation")
    stored_run(tmp_path, NAME, CARD, *rows, run_id="both", started_at="2026-11-20T00:00:00+00:00")
    stored_run(tmp_path, NAME, CARD, rows[0], run_id="newer", size="tiny", started_at="2026-11-21T00:00:00+00:00")
    Lab(NAME, results=str(tmp_path)).compare("baseline", *rows)
    assert "size full" in shown_output[2]
    assert "No result yet: Baseline." in shown_output[2]
    assert "(baseline has not run)" in shown_output[3]


@pytest.mark.usefixtures("no_command")
def test_a_miniature_is_shown_in_mib_next_to_the_prediction_at_full_size(tmp_path, shown_output):
    folder = stored_run(tmp_path, NAME, CARD, "reduced-batch", "grad-accumulation", size="tiny")
    spec = folder.results()["reduced-batch"].spec.model_copy(update={"size": "full"})
    folder.write_predictions([prediction(spec, 70.0)])
    lab = Lab(NAME, results=str(tmp_path))
    lab.show("reduced-batch")
    assert "| after forward | 14.00 | 14.00 | 28.00 | 10.00 | 66.00 | 66.00 |" in shown_output[0]
    assert "| MiB |" in shown_output[0]
    assert "Predicted at full size on a100_80gb: fits: needs 70.00 GiB" in shown_output[0]
    lab.compare("reduced-batch", "grad-accumulation")
    measured, foreseen = shown_output[-2].split("**Memory predicted at full size** on a100_80gb")
    assert "| MiB |" in measured
    assert "| GiB |" in foreseen
    assert "| Reduced batch size | fits | 14.00 | 14.00 | 28.00 | 14.00 |" in foreseen


@pytest.mark.usefixtures("no_command")
def test_rejected_rows_are_compared_without_a_chart(tmp_path, shown_output):
    folder = RunFolder(tmp_path / "one")
    folder.write_run(run("baseline", "reduced-batch", suite=NAME))
    for row in ("baseline", "reduced-batch"):
        spec = folder.read_run().spec(suite_named(NAME), row)
        write_result(folder, result("a", "rejected").model_copy(update={"spec": spec}))
    Lab(NAME, results=str(tmp_path)).compare("baseline", "reduced-batch")
    assert not any(isinstance(block, list) for block in shown_output)
    assert "| Baseline | rejected |" in shown_output[1]
    assert "Speed" not in shown_output[1]


EVIDENCE = "single_gpu_blip2-a100_80gb-full-verdict"


@pytest.mark.usefixtures("no_command")
def test_only_results_of_the_named_run_are_described_and_shown(tmp_path, shown_output):
    run_with_result_of(tmp_path, "baseline", started_at="2030-01-01T00:00:00+00:00")
    lab = Lab(NAME, results=str(tmp_path), run=EVIDENCE)
    lab.introduce()
    lab.show("baseline")
    assert f"of one run, `{EVIDENCE}`**: 15 rows for a100_80gb, size full" in shown_output[0]
    assert shown_output[1].startswith("### Baseline: out of GPU memory")
    slurm = Lab("slurm_hf_trainer", run="slurm_hf_trainer-a100_40gb-full-verdict")
    slurm.show("neo-8gpu-ddp")
    assert shown_output[2].startswith("### Four GPUs of each of two nodes, DDP: not in this run")
    with pytest.raises(InputError, match=f"unknown run 'nope'; allowed: .*{EVIDENCE}"):
        Lab(NAME, run="nope")


@pytest.mark.usefixtures("no_command")
def test_all_cells_use_the_run_that_the_first_cell_found(tmp_path, shown_output):
    run_with_result_of(tmp_path, "baseline", "one", started_at="2026-11-20T00:00:00+00:00")
    lab = Lab(NAME, results=str(tmp_path))
    lab.show("baseline")
    run_with_result_of(tmp_path, "xxl", "two", started_at="2026-11-21T00:00:00+00:00")
    with pytest.raises(RuntimeError, match="xxl has no result"):
        lab.show("xxl")


@pytest.mark.usefixtures("no_command")
def test_a_row_is_shown_with_its_settings_and_its_training_code(tmp_path, shown_output):
    run_with_result_of(tmp_path, "xxl-sgd")
    Lab(NAME, results=str(tmp_path)).show("xxl-sgd")
    assert "```yaml\nid: xxl-sgd\n" in shown_output[0]
    assert "  optimizer: sgd\n" in shown_output[0]
    assert "trainer.fit(TransformersModule(probe, model)" in shown_output[0]


@pytest.mark.usefixtures("no_command")
def test_the_prediction_at_full_size_is_shown_before_the_results_of_a_miniature(tmp_path, shown_output):
    folder = stored_run(tmp_path, NAME, CARD, "reduced-batch", size="tiny")
    spec = folder.results()["reduced-batch"].spec.model_copy(update={"size": "full"})
    folder.write_predictions([prediction(spec, 90.0)])
    Lab(NAME, results=str(tmp_path)).show("reduced-batch")
    assert shown_output[0].startswith("### Reduced batch size: out of GPU memory at full size; miniature: fits")
    parts = ("Predicted at full size", "if the card had enough memory:", "| GiB |", "**In miniature**", "| MiB |")
    places = [shown_output[0].index(part) for part in parts]
    assert places == sorted(places)
    assert "\n\nfits, " in shown_output[0]
    assert "GiB at the peak" not in shown_output[0]


@pytest.mark.usefixtures("no_command")
def test_statements_about_rows_that_a_run_leaves_out_are_listed_without_a_verdict(tmp_path, shown_output):
    stored_run(tmp_path, NAME, CARD, "baseline", size="tiny")
    lab = Lab(NAME, results=str(tmp_path))
    lab.show("baseline")
    lab.compare("grad-accumulation", "reduced-precision", "mixed-precision")
    assert shown_output[-1].startswith("**Statements of the lab**\n\n- bfloat16 needs much less memory than 32 bit.\n")


@pytest.mark.usefixtures("no_command")
def test_a_run_of_predictions_shows_them_in_place_of_results(shown_output):
    lab = Lab("single_gpu_litgpt", run="single_gpu_litgpt-a100_80gb-without-gpu")
    lab.introduce()
    lab.show("tiny-baseline")
    lab.compare("tiny-baseline", "tiny-reduced-batch")
    assert "compare the text with what is predicted at full size" in shown_output[0]
    assert re.match(r"### .*: out of GPU memory, predicted at full size\n\nPredicted at full size on ", shown_output[1])
    assert shown_output[3].startswith("**Memory predicted at full size**")
    assert "| fits |" in shown_output[3]


@pytest.mark.usefixtures("no_command")
def test_a_ladder_shows_each_row_s_speed_relative_to_the_first_and_to_the_previous_row(tmp_path, shown_output):
    folder = stored_run(tmp_path, NAME, CARD)
    for row, samples_per_s, losses in (("reduced-batch", 10.0, 3.0), ("mixed-precision", 20.0, 2.0)):
        made = folder.results()[row]
        speed = made.speed.model_copy(update={"samples_per_s": samples_per_s, "peak_share": samples_per_s / 50})
        write_result(folder, made.model_copy(update={"speed": speed, "losses": (losses,) * 12}))
    rows = ("baseline", "reduced-batch", "mixed-precision", "grad-accumulation")
    Lab(NAME, results=str(tmp_path)).ladder(*rows)
    bars, table = shown_output
    assert bars == ["Reduced batch size", "Mixed precision", "Gradient accumulation"]
    first, second = (next(line for line in table.splitlines() if f"| {title} |" in line) for title in bars[:2])
    assert "| 10 |  |  | 20.0% |" in first
    assert "| 20 | 2 | 2 | 40.0% |" in second
    assert [line.split("|")[-2].strip() for line in (first, second)] == ["3.000", "2.000"]


@pytest.mark.usefixtures("no_command")
def test_a_ladder_without_times_on_a_gpu_has_no_bars(tmp_path, shown_output):
    stored_run(tmp_path, NAME, CARD, size="tiny")
    lab = Lab(NAME, results=str(tmp_path))
    lab.ladder("reduced-batch", "mixed-precision")
    assert len(shown_output) == 1
    assert "| Mixed precision |" in shown_output[0]
    shown_output.clear()
    Lab(NAME, results=str(tmp_path / "none")).ladder("reduced-batch")
    assert shown_output == ["None of these has a result yet: reduced-batch."]


def test_a_borderline_row_without_a_result_is_shown_as_borderline(shown_output):
    lab = Lab("multi_gpu_litgpt", run="multi_gpu_litgpt-a100_80gb-without-gpu")
    lab.show("7b-4gpu-ddp")
    assert "DDP: borderline, predicted at full size" in shown_output[0]
