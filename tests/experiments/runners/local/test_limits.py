"""The limits of rows on this machine, the time left, and what an ended row leaves. No process is started."""

import os
import signal
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.results.schema import CHECKPOINTS_FOLDER, EARLIER_FOLDER, RESULT_FILE, START_LIMIT_S, Progress
from experiments.runners.local import gpu_memory, runner
from experiments.runners.local.resources import Allocation, ResourcePool
from experiments.runners.local.runner import LocalRunner, RunningRow, clear_row_folder, collect_stop_signals
from experiments.runners.progress import RowState
from tests.support.results import in_memory
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_time import FakeTime
from tests.support.runners.fake_view import RecordingView

GPU = sample_rows.GPU


@pytest.fixture
def clock(monkeypatch):
    made = FakeTime(1000.0)
    monkeypatch.setattr(runner, "time", made)
    return made


@pytest.fixture
def local(tmp_path, clock):
    """Return a runner on a machine with two GPUs; ``options`` are those of LocalRunner."""

    def make(gpus=(GPU, GPU), **options):
        folder = sample_rows.folder(tmp_path / "run", "a", "b")
        return LocalRunner(folder, sample_rows.node(*gpus, cpus=8), 640.0, RecordingView(), "worker", **options)

    return make


def running(made, clock, row="a", ended=None, **settings):
    """Add a row that runs since now."""
    spec = sample_rows.spec(row, **settings)
    folder = clear_row_folder(made._row_folder(spec))
    process: Any = SimpleNamespace(poll=lambda: ended, wait=lambda: None)
    made._running.append(RunningRow(spec, folder, made._pool.allocate(spec), process, clock.now))
    return made._running[-1]


def state(left_s=None, elapsed_s=10.0):
    at = Progress(phase="forward", step=1, micro_steps=1, planned_micro_steps=9, left_s=left_s)
    return RowState(sample_rows.spec("a"), elapsed_s, at)


def test_a_row_may_run_for_its_time_limit_and_a_grace_period_after_its_first_progress(local, clock):
    made = local(grace_s=30.0)
    row = running(made, clock, time_limit_s=100)
    clock.now += START_LIMIT_S + 130
    assert not made._has_ended_or_timed_out(row)
    clock.now += 1
    assert made._has_ended_or_timed_out(row)
    clock.now = 1007.0
    (row.folder / "progress.json").write_text(state().progress.model_dump_json())
    made._show_progress(1, [])
    clock.now = 1007.0 + 130
    made._show_progress(1, [])
    assert (row.limit_from_s, made._has_ended_or_timed_out(row)) == (7.0, False)
    clock.now += 1
    assert made._has_ended_or_timed_out(row)


def test_a_row_has_ended_as_soon_as_its_process_has_ended(local, clock):
    made = local()
    assert made._has_ended_or_timed_out(running(made, clock, ended=0))


def test_ended_and_waiting_rows_are_counted_and_a_row_with_a_result_is_shown_as_ending(local, clock):
    made = local()
    row = running(made, clock)
    made._show_progress(5, [sample_rows.spec("b"), sample_rows.spec("c")])
    (row.folder / RESULT_FILE).write_text("{}")
    made._show_progress(5, [sample_rows.spec("b"), sample_rows.spec("c")])
    assert [(states[0].status, done, total) for states, done, total, _ in made._view.shown] == [
        ("", 2, 5),
        ("ending", 2, 5),
    ]


@pytest.mark.parametrize(
    ("alive", "used_gib", "line"),
    [
        ([], {}, None),
        ([7, 8], {}, "process 7 cannot be killed, process 8 cannot be killed"),
        ([], {0: 3.04}, "3.0 GiB are still in use on GPU 0"),
    ],
)
def test_gpus_that_an_ended_row_still_uses_are_not_given_to_other_rows(
    local, clock, monkeypatch, alive, used_gib, line
):
    made = local()
    row = running(made, clock)
    monkeypatch.setattr(gpu_memory, "gpus_still_in_use", lambda before, neighbors_gib: used_gib)
    made._release_resources(row, alive, {0: 0.0, 1: 0.0})
    assert made._pool.size == (1 if line else 2)
    assert made._view.lines == ([f"a: later rows do not use its GPUs: {line}"] if line else [])


@pytest.mark.parametrize("had_result", [True, False])
@pytest.mark.parametrize("act", ["_kill", "_finish"])
def test_a_result_that_is_written_only_while_its_row_is_killed_does_not_count(
    local, clock, monkeypatch, act, had_result
):
    made = local()
    row = running(made, clock)
    result = in_memory.result("a").model_dump_json()
    if had_result:
        (row.folder / RESULT_FILE).write_text(result)
    monkeypatch.setattr(made, "_end_processes", lambda folder: (folder / RESULT_FILE).write_text(result) and [])
    monkeypatch.setattr(gpu_memory, "gpus_still_in_use", lambda before, neighbors_gib: {})
    if act == "_kill":
        made._kill(row)
        assert (row.folder / RESULT_FILE).exists() == had_result
        return
    clock.now += 12
    made._finish(row, {0: 0.0, 1: 0.0})
    assert made._folder.results()["a"].outcome == ("fits" if had_result else "timeout")
    assert (made._running, made._remaining.times_of_ended_rows_s, made._pool.size) == ([], [12.0], 2)


def test_a_row_that_wrote_no_result_gets_one_with_the_reason_and_its_gpu(local, clock):
    made = local()
    row = running(made, clock, devices=2, strategy="ddp", time_limit_s=60)
    late = made._read_or_write_result(row, True, 200.4)
    (row.folder / RESULT_FILE).unlink()
    ended = made._read_or_write_result(row, False, 200.4)
    assert (late.outcome, late.reason) == ("timeout", "did not end within 200 s; the time limit is 60 s")
    assert (ended.outcome, ended.reason) == ("error", "ended without a result: no output")
    assert (ended.device.name, ended.device.count, ended.elapsed_s) == (GPU.name, 2, 200.4)


class WarmProcess:
    """A fake warm process."""

    def __init__(self, ready=True, why=None):
        self.ready, self.why, self.environment = ready, why, {"WARM": "1"}

    def last_line_if_ended(self):
        return self.why


@pytest.mark.parametrize(
    ("warm", "outcome", "lost"),
    [
        (None, None, []),
        (WarmProcess(), None, []),
        (WarmProcess(why="killed"), None, ["a"]),
        (WarmProcess(why="killed"), "error", ["a"]),
        (WarmProcess(why="killed"), "oom", []),
        (WarmProcess(ready=False, why="killed"), None, []),
    ],
)
def test_running_rows_are_lost_with_the_warm_process_unless_they_have_a_valid_result(local, clock, warm, outcome, lost):
    made = local()
    row = running(made, clock)
    made._warm = [warm] if warm else []
    if outcome:
        (row.folder / RESULT_FILE).write_text(in_memory.result("a", outcome).model_dump_json())
    assert [one.spec.row for one in made._rows_lost_with_warm_process()] == lost
    over = warm is not None and warm.why is not None
    assert made._view.lines == (
        ["rows start more slowly from now on: a warm process has ended (killed)"] if over else []
    )
    assert made._warm == ([] if over or warm is None else [warm])


def test_a_lost_row_is_reset_as_if_it_had_not_started(local, clock, monkeypatch):
    made = local()
    row = running(made, clock)
    (row.folder / RESULT_FILE).write_text("{}")
    monkeypatch.setattr(made, "_end_processes", lambda folder: [])
    monkeypatch.setattr(gpu_memory, "gpus_still_in_use", lambda before, neighbors_gib: {})
    assert made._reset(row, {0: 0.0, 1: 0.0}) == row.spec
    assert (made._running, made._remaining.times_of_ended_rows_s, (row.folder / RESULT_FILE).exists()) == (
        [],
        [],
        False,
    )
    assert made._pool.allocate(sample_rows.spec("b", devices=2, strategy="ddp"))


def test_a_row_s_environment_has_the_indices_of_its_gpus_and_the_number_of_its_cores(local):
    made = local()
    variables = made._environment(Allocation((0, 1), (GPU, GPU.__class__(3, "x", 1.0, "")), 4))
    assert (variables["CUDA_VISIBLE_DEVICES"], variables["OMP_NUM_THREADS"]) == ("0,3", "4")
    made._warm = [WarmProcess()]
    assert made._environment(Allocation((), (), 1))["WARM"] == "1"


def test_an_earlier_result_is_stored_under_the_time_when_it_was_written(tmp_path):
    row = tmp_path / "new" / "row"
    clear_row_folder(row)
    (row / RESULT_FILE).write_text("old")
    os.utime(row / RESULT_FILE, (moment := datetime(2026, 11, 28, 1, 45, 1, 500000, UTC).timestamp(),) * 2)
    (row / CHECKPOINTS_FOLDER).mkdir()
    (row / "link").symlink_to(tmp_path)
    clear_row_folder(row)
    assert [path.name for path in row.iterdir()] == [EARLIER_FOLDER]
    (kept,) = (row / EARLIER_FOLDER).iterdir()
    assert (kept.name, kept.read_text(), kept.stat().st_mtime) == ("20261128T014501.500000Z.json", "old", moment)
    (row / RESULT_FILE).write_text("newer")
    clear_row_folder(row)
    assert len(list((row / EARLIER_FOLDER).iterdir())) == 2


def test_stop_signals_are_collected_and_ignored_ones_stay_ignored():
    kinds: dict[signal.Signals, Any] = {
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in kinds.items()}
    try:
        with collect_stop_signals() as received:
            for number in kinds:
                os.kill(os.getpid(), number)
        assert received == [signal.SIGTERM, signal.SIGINT]
        assert {number: signal.getsignal(number) for number in kinds} == kinds
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_row_s_share_of_a_machine_has_whole_cores_and_is_returned_completely():
    pool = ResourcePool(sample_rows.node(GPU, GPU, GPU, cpus=8), 64)
    two = sample_rows.spec("a", devices=2, strategy="ddp")
    allocation = pool.allocate(two)
    assert (allocation.part_numbers, allocation.cores) == ((0, 1), 4)
    assert pool.allocate(two) is None
    pool.release(allocation)
    assert pool.allocate(two).part_numbers == (0, 1)
    assert ResourcePool(sample_rows.node(GPU, GPU, cpus=1), 64).allocate(sample_rows.spec()).cores == 1
    assert [ResourcePool(sample_rows.node(cpus=cpus), 64).size for cpus in (0, 4, 5)] == [1, 4, 4]


def test_a_row_may_use_exactly_the_memory_that_is_left():
    row = sample_rows.spec("a")
    for memory_gib, fits in ((16.0, True), (15.9, False)):
        pool = ResourcePool(sample_rows.node(GPU, GPU), memory_gib)
        assert pool.allocate(row)
        assert (pool.allocate(row) is not None) == fits
