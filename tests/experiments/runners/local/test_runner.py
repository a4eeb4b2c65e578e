"""The runner on this machine, with real notebooks and kernels and a fake for the trainer."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from experiments.results.schema import CHECKPOINTS_FOLDER, EARLIER_FOLDER, NOTEBOOK_FILE, RESULT_FILE
from experiments.runners.local import gpu_memory, row_process, runner
from experiments.runners.local.runner import LocalRunner, NoFreeGpu, clear_row_folder
from provision.hardware import gpus, nvidia
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_view import RecordingView

pytestmark = pytest.mark.xdist_group("runner")

SECOND = sample_rows.GPU.__class__(1, sample_rows.GPU.name, sample_rows.GPU.memory_gib, "GPU-b")
BEHAVIOR = {"a": "oom", "b": "child", "c": "silent", "d": "garbled", "e": "die"}


class FinishedRun:
    """A run of the runner: its folder, and the lines that it printed."""

    def __init__(self, path: Path, specs, node, view: Any = None, **options) -> None:
        self.path = path
        self.view: Any = view or RecordingView()
        self.folder = sample_rows.folder(path / "run", *(spec.row for spec in specs))
        self.runner = LocalRunner(self.folder, node, 64.0, self.view, fake_worker.MODULE, **options)
        self.specs = specs

    def run(self) -> "FinishedRun":
        self.runner.run(sample_rows.rows_to_run(*self.specs))
        return self

    def notebook_error(self, row: str) -> str | None:
        notebook = json.loads((self.folder.row_folder_named(row) / NOTEBOOK_FILE).read_text())
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        return next((output["evalue"] for output in outputs if output["output_type"] == "error"), None)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Run six rows, which end in different ways, on a machine with two cores."""
    path = tmp_path_factory.mktemp("runner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE", ",".join(f"{row}={action}" for row, action in BEHAVIOR.items()))
        patch.setenv("FAKE_JOURNAL", str(path / "journal"))
        specs = [sample_rows.spec(row, size="tiny") for row in "abcdef"]
        yield FinishedRun(path, specs, sample_rows.node(cpus=2)).run()


def test_every_row_ends_with_a_result(finished_run):
    outcomes = {row: result.outcome for row, result in finished_run.folder.results().items()}
    assert outcomes == {"a": "oom", "b": "fits", "c": "error", "d": "error", "e": "error", "f": "fits"}


def test_only_a_row_that_fits_has_a_notebook_without_an_error(finished_run):
    errors = {row: finished_run.notebook_error(row) for row in "abcdef"}
    assert errors["b"] is errors["f"] is None
    assert errors["a"] == "out of GPU memory: fake worker: oom"
    assert errors["c"] == errors["e"] == "the row's process wrote no result.json"


def test_a_missing_result_is_an_error_with_the_last_line_of_the_log(finished_run):
    result = finished_run.folder.results()["c"]
    assert result.reason == "ended without a result: last line of c"
    assert result.failure.message == "last line of c"
    assert result.fingerprint == result.spec.fingerprint


def test_a_result_that_cannot_be_read_is_an_error(finished_run):
    assert "not a result of schema version 1" in finished_run.folder.results()["d"].reason


def test_a_notebook_contains_the_outcome_and_the_output_of_the_worker(finished_run):
    text = (finished_run.folder.row_folder_named("f") / NOTEBOOK_FILE).read_text()
    assert "# FITS" in text
    assert "f behaves: fits" in text
    assert str(finished_run.path) not in "".join(text.partition('"papermill"')[0])


def test_two_rows_run_side_by_side_and_each_runs_once(finished_run):
    notes = [line.split() for line in (finished_run.path / "journal").read_text().splitlines()]
    starts = [note for note in notes if len(note) == 3]
    assert sorted(note[0] for note in starts) == list("abcdef")
    states = [len(states) for states, *_ in finished_run.view.shown]
    assert max(states) == 2


def test_no_process_of_a_row_is_left_not_even_a_detached_one(finished_run):
    assert [row_process.tagged_processes(finished_run.folder.row_folder_named(row)) for row in "abcdef"] == [[]] * 6


def test_the_start_and_the_end_of_each_row_are_printed_once(finished_run):
    assert sum("starts (no result yet)" in line for line in finished_run.view.lines) == 6
    assert "f: ran (miniature), peak 1 GiB, 2 s" in finished_run.view.lines
    assert "a: out of GPU memory, peak 1 GiB, 2 s: fake worker: oom" in finished_run.view.lines


class TimePasses(RecordingView):
    """A view that advances the runner's clock by an hour when it shows the seventh micro-step of a row."""

    passed_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s

    def show_rows(self, states, *counts) -> None:
        super().show_rows(states, *counts)
        if any(state.progress and state.progress.micro_steps == 7 for state in states):
            self.passed_s = 3600.0


def test_a_row_that_hangs_ends_at_its_time_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", "a=hang")
    finished_run = FinishedRun(
        tmp_path, [sample_rows.spec("a", size="tiny", time_limit_s=1)], sample_rows.node(), view=TimePasses()
    )
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=finished_run.view.monotonic, sleep=time.sleep))
    finished_run.run()
    result = finished_run.folder.results()["a"]
    assert result.outcome == "timeout"
    assert "the time limit is 1 s" in result.reason
    assert (result.failure.phase, result.failure.step, result.memory.peak_gib) == ("backward", 3, 1.5)
    assert row_process.tagged_processes(finished_run.folder.row_folder_named("a")) == []
    assert finished_run.view.passed_s, "the row's progress was not shown"


def test_files_of_the_earlier_run_are_removed_before_a_row_runs_again(tmp_path):
    finished_run = FinishedRun(tmp_path, [sample_rows.spec("a", size="tiny")], sample_rows.node())
    old = finished_run.folder.row_folder_named("a")
    (old / "checkpoints").mkdir(parents=True)
    (old / "checkpoints" / "weights").write_text("old")
    finished_run.run()
    assert not (old / "checkpoints").exists()


@pytest.fixture
def no_notebooks(monkeypatch):
    """Replace the processes of rows by ones that write the driver's variables; ``used_gib``: the GPUs' used memory."""
    used_gib = {0: 0.0, 1: 0.0}
    seen: dict[str, str] = {}

    def start(row_folder, worker, environment):
        seen[row_folder.name] = environment["CUDA_VISIBLE_DEVICES"]
        spec = sample_rows.spec(row_folder.name)
        (row_folder / RESULT_FILE).write_text(fake_worker.fake_result(spec, "fits").model_dump_json())
        (row_folder / row_process.NOTEBOOK_LOG).touch()
        return psutil.Popen(["true"])

    monkeypatch.setattr(row_process, "start", start)
    monkeypatch.setattr(gpus, "used_gib", lambda indices: {index: used_gib[index] for index in indices})
    return used_gib, seen


class FirstRowTakesAMinute(TimePasses):
    """A view that advances the runner's clock by a minute when it first shows a row."""

    def show_rows(self, states, *counts) -> None:
        super().show_rows(states, *counts)
        self.passed_s = 60.0


@pytest.mark.usefixtures("no_notebooks")
def test_the_time_left_is_shown_after_the_first_row(tmp_path, monkeypatch):
    specs = [sample_rows.spec(row) for row in "ab"]
    finished_run = FinishedRun(tmp_path, specs, sample_rows.node(sample_rows.GPU), view=FirstRowTakesAMinute())
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=finished_run.view.monotonic, sleep=time.sleep))
    finished_run.run()
    left_s = {done: left_s for states, done, _, left_s in reversed(finished_run.view.shown) if states}
    assert left_s[0] is None
    assert 0 < left_s[1] < 120


def test_each_row_sees_only_its_own_gpu(tmp_path, no_notebooks):
    _, seen = no_notebooks
    FinishedRun(
        tmp_path, [sample_rows.spec("a"), sample_rows.spec("b")], sample_rows.node(sample_rows.GPU, SECOND)
    ).run()
    assert seen == {"a": "0", "b": "1"}


def test_a_process_keeps_the_gpu_driver_open_while_rows_run(tmp_path, no_notebooks, monkeypatch):
    """Fake: NVIDIA's driver, which counts how often it is opened and closed."""
    used_gib, _ = no_notebooks
    opened: list[int] = []
    monkeypatch.setattr(nvidia, "start_nvml", lambda: opened.append(1) or True)
    monkeypatch.setattr(nvidia, "stop_nvml", lambda: opened.append(-1))
    seen: list[int] = []
    monkeypatch.setattr(
        gpus, "used_gib", lambda indices: seen.append(sum(opened)) or dict.fromkeys(indices, used_gib[0])
    )
    FinishedRun(tmp_path, [sample_rows.spec("a")], sample_rows.node(sample_rows.GPU)).run()
    assert (seen, opened) == ([1, 1], [1, -1]), "before the row and after it"


def test_extensions_are_compiled_before_the_first_row_starts(tmp_path, no_notebooks, monkeypatch):
    compiled: list[str] = []

    def compile_extensions(specs, folder, print_line, stopped):
        compiled.extend(spec.row for spec in specs)
        print_line("compiled")

    monkeypatch.setattr(runner, "compile_extensions", compile_extensions)
    made = FinishedRun(tmp_path, [sample_rows.spec(row) for row in "ab"], sample_rows.node(sample_rows.GPU)).run()
    assert compiled == ["a", "b"]
    assert made.view.lines[0] == "compiled"


def test_a_gpu_whose_memory_is_still_used_gets_no_other_row(tmp_path, no_notebooks, monkeypatch):
    used_gib, seen = no_notebooks
    not_free = gpu_memory.gpus_still_in_use
    occupied = {0: 3.0}
    monkeypatch.setattr(
        gpu_memory,
        "gpus_still_in_use",
        lambda before, neighbors_gib: used_gib.update(occupied) or not_free(before, neighbors_gib, 0.1),
    )
    finished_run = FinishedRun(tmp_path, [sample_rows.spec(row) for row in "abc"], sample_rows.node(sample_rows.GPU))
    with pytest.raises(NoFreeGpu, match="2 row"):
        finished_run.run()
    assert list(seen) == ["a"]
    assert "a: later rows do not use its GPUs: 3.0 GiB are still in use on GPU 0" in finished_run.view.lines


def test_the_runner_waits_for_a_gpu_to_become_free(monkeypatch):
    figures = iter([3.0, 3.0, 0.1])
    monkeypatch.setattr(gpus, "used_gib", lambda indices: {0: next(figures)})
    assert gpu_memory.gpus_still_in_use({0: 0.0}, within_s=5.0) == {}


def test_killing_a_row_also_kills_its_processes_in_other_sessions(tmp_path):
    spawn = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True); input()"
    other = subprocess.Popen(["sleep", "600"])
    own = subprocess.Popen(
        [sys.executable, "-c", spawn],
        env=os.environ | {row_process.ROW_VARIABLE: str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 10
        while len(row_process.tagged_processes(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(row_process.tagged_processes(tmp_path)) == 2
        assert row_process.any_row_alive()
        assert row_process.kill(tmp_path) == []
        assert own.wait() == -9
        assert other.poll() is None
    finally:
        other.kill()
        own.kill()


def test_an_interrupted_row_keeps_its_checkpoints_and_others_do_not(tmp_path):
    (tmp_path / CHECKPOINTS_FOLDER / "checkpoint-100").mkdir(parents=True)
    (tmp_path / "rank-0").mkdir()
    (tmp_path / "log.txt").touch()
    assert [path.name for path in clear_row_folder(tmp_path).iterdir()] == [CHECKPOINTS_FOLDER]
    (tmp_path / RESULT_FILE).touch()
    assert [path.name for path in clear_row_folder(tmp_path).iterdir()] == [EARLIER_FOLDER], "the result is not lost"
    assert len(list((tmp_path / EARLIER_FOLDER).iterdir())) == 1
