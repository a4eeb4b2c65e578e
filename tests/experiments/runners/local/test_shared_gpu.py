"""The runner on a machine whose rows share a GPU: a fake GPU, and processes that only wait."""

import os
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.results.schema import RESULT_FILE, SHARED_GPU_VARIABLE
from experiments.runners.local import gpu_memory, row_process, runner
from experiments.runners.local.runner import LocalRunner, NoFreeGpu
from experiments.runners.local.sharing import max_row_gib
from provision.hardware import gpus
from tests.support.results.in_memory import CARD
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_view import RecordingView

pytestmark = pytest.mark.xdist_group("runner")

IDLE_GIB, ROW_GIB = 0.5, 5.0


class FakeGpu:
    """A GPU on which every living process uses ROW_GIB; ``left_gib`` is memory that belongs to no process."""

    def __init__(self) -> None:
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.left_gib: dict[str, float] = {}
        self.reports_processes = True
        self.short = {"a"}
        self.silent: set[str] = set()

    def start(self, row_folder, worker, environment) -> subprocess.Popen[bytes]:
        """Start a process that waits, or ends at once for a row in ``short``; rows in ``silent`` write no result."""
        row = row_folder.name
        if row not in self.silent:
            result = fake_worker.fake_result(sample_rows.spec(row), "fits")
            (row_folder / RESULT_FILE).write_text(result.model_dump_json())
        tag = {row_process.ROW_VARIABLE: str(row_folder.resolve())}
        command = ["true"] if row in self.short else ["sleep", "600"]
        self.started[row] = subprocess.Popen(command, env=os.environ | tag)
        self.environments[row] = environment
        return self.started[row]

    def end(self, row: str) -> None:
        self.started[row].kill()
        self.started[row].wait()

    def used_gib(self, indices) -> dict[int, float]:
        left_gib = sum(self.left_gib.get(row, 0.0) for row in self.started if not self.runs(row))
        return dict.fromkeys(indices, IDLE_GIB + left_gib + ROW_GIB * sum(map(self.runs, self.started)))

    def process_gib(self, index) -> dict[int, float]:
        pids = [process.pid for row, process in self.started.items() if self.runs(row)]
        return dict.fromkeys([*pids, 1], ROW_GIB) if self.reports_processes else {}

    def runs(self, row: str) -> bool:
        return row not in self.short and self.started[row].poll() is None


class Watching(RecordingView):
    """A view that ends the process of ``then_ends`` when the row ``after`` has been reported and its memory checked."""

    def __init__(self, gpu: FakeGpu, after: str = "a", then_ends: tuple[str, ...] = ("b", "c")) -> None:
        super().__init__()
        self._gpu, self._after, self._then_ends = gpu, after, then_ends
        self.lines_before: list[str] = []
        self._seen = False

    def report_end(self, spec, result) -> None:
        super().report_end(spec, result)
        self._seen = self._seen or spec.row == self._after

    def show_rows(self, states, *counts) -> None:
        super().show_rows(states, *counts)
        if self._seen and not self.lines_before:
            self.lines_before = self.lines
            for row in self._then_ends:
                if row in self._gpu.started:
                    self._gpu.end(row)


@pytest.fixture
def gpu(monkeypatch) -> Iterator[FakeGpu]:
    """The GPU of the machine; each time the check of memory reads the clock, the clock advances by a minute."""
    made, clock = FakeGpu(), count(step=60.0)
    monkeypatch.setattr(row_process, "start", made.start)
    monkeypatch.setattr(gpus, "used_gib", made.used_gib)
    monkeypatch.setattr(gpus, "process_gib", made.process_gib)
    moved = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr(gpu_memory, "time", moved)
    yield made
    for process in made.started.values():
        process.kill()
        process.wait()


def run_rows(tmp_path, view, specs, rows_per_gpu=3) -> Any:
    folder = sample_rows.folder(tmp_path / "run", *(spec.row for spec in specs))
    node = sample_rows.node(sample_rows.GPU, cpus=7)
    made = LocalRunner(folder, node, 64.0, view, fake_worker.MODULE, rows_per_gpu=rows_per_gpu)
    made.run(sample_rows.rows_to_run(*specs))
    return folder


def specs_of(rows: str) -> list[Any]:
    return [sample_rows.spec(row) for row in rows]


def test_rows_run_side_by_side_on_one_gpu_with_a_share_of_the_cores(tmp_path, gpu):
    view = Watching(gpu)
    folder = run_rows(tmp_path, view, specs_of("abc"))
    assert {result.outcome for result in folder.results().values()} == {"fits"}
    assert max(len(states) for states, *_ in view.shown) == 3
    for environment in gpu.environments.values():
        assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]) == ("0", "2")
        assert environment[SHARED_GPU_VARIABLE] == "1"
    assert not [line for line in view.lines if "later rows" in line], "the neighbors' memory is no leftover"


def test_with_one_row_per_gpu_no_row_counts_as_sharing_its_gpu(tmp_path, gpu):
    gpu.short = {"a", "b"}
    run_rows(tmp_path, RecordingView(), specs_of("ab"), rows_per_gpu=1)
    assert not [row for row, environment in gpu.environments.items() if SHARED_GPU_VARIABLE in environment]


def test_gpu_memory_of_a_running_neighbor_does_not_count_as_left_by_an_ended_row(tmp_path, gpu, monkeypatch):
    exact = gpu.process_gib
    monkeypatch.setattr(gpus, "process_gib", lambda index: {pid: gib - 0.2 for pid, gib in exact(index).items()})
    view = Watching(gpu)
    run_rows(tmp_path, view, specs_of("abc"))
    assert not [line for line in view.lines if "later rows" in line]


def test_gpu_memory_that_an_ended_row_still_uses_is_found_while_its_neighbors_run(tmp_path, gpu):
    gpu.left_gib = {"a": 3.0}
    view = Watching(gpu)
    with pytest.raises(NoFreeGpu, match="1 row"):
        run_rows(tmp_path, view, specs_of("abcd"))
    found = "a, or a row that shared its GPU: later rows do not use its GPUs: 3.0 GiB are still in use on GPU 0"
    assert found in view.lines_before, "it is found while the neighbors run"
    assert set(gpu.started) == set("abc")


@pytest.mark.parametrize(("left_gib", "at_once"), [(3.0, False), (3 * max_row_gib(CARD), True)])
def test_memory_that_an_ended_row_still_uses_is_found_later_if_the_driver_reports_no_processes(
    tmp_path, gpu, left_gib, at_once
):
    gpu.left_gib, gpu.reports_processes = {"a": left_gib}, False
    view = Watching(gpu)
    run_rows(tmp_path, view, specs_of("abc"))
    assert any("later rows do not use" in line for line in view.lines_before) == at_once
    assert any(
        line.startswith(("b, or", "c, or")) and f"{left_gib + IDLE_GIB:.1f} GiB are still in use" in line
        for line in view.lines
    ), "the last row to end finds it"


def test_the_end_of_a_row_at_its_time_limit_does_not_end_its_neighbors(tmp_path, gpu, monkeypatch):
    gpu.short, gpu.silent = set(), {"a"}
    passed_s = 0.0
    view = Watching(gpu, then_ends=("b",))

    def later(seconds: float) -> None:
        nonlocal passed_s
        passed_s = 3600.0

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s, sleep=later)
    monkeypatch.setattr(runner, "time", clock)
    killed: list[bool] = []
    report_end = view.report_end

    def note_neighbor(spec, result) -> None:
        killed.append(gpu.runs("b"))
        report_end(spec, result)

    monkeypatch.setattr(view, "report_end", note_neighbor)
    specs = [sample_rows.spec("a", time_limit_s=1), sample_rows.spec("b", time_limit_s=10_000)]
    results = run_rows(tmp_path, view, specs).results()
    assert {row: result.outcome for row, result in results.items()} == {"a": "timeout", "b": "fits"}
    assert killed == [True, False], "b still ran when a was ended"
