"""Rows of several ranks: real launchers and collectives, and a fake engine in each rank."""

import os
import random
import re
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.results.schema import LOG_FILE, RESULT_FILE, read_result
from experiments.results.wording import format_size
from experiments.system.processes import find_tagged
from experiments.training import worker
from experiments.training.distributed import ranks
from experiments.training.distributed.launcher import accelerate_arguments, torchrun_arguments
from experiments.training.distributed.ranks import free_port, launcher_environments
from experiments.training.worker import run_row
from tests.support.training.tiny_rows import spec

FAKE = "tests.support.training.fake_rank"
NAMES = {"log.txt", "result.json", "spec.json", "telemetry.csv"}
FAILURES = {
    "oom": (
        "oom",
        "OutOfMemoryError",
        "rank 1: out of GPU memory in the backward pass of step 1 (counted from 0), 2 GiB more requested",
    ),
    "killed": ("error", "signal 9", "rank 1: signal 9 last seen in the backward pass of step 1 (counted from 0): "),
    "error": (
        "error",
        "ValueError",
        "rank 1: ValueError in the backward pass of step 1 (counted from 0): shapes differ",
    ),
    "quiet": ("oom", "signal 6", "rank 1: out of GPU memory last seen in the backward pass of step 1 (counted from 0)"),
}
"""Outcome, kind and begin of the reason of each failure."""
REACHES_COLLECTIVE_S = 2.0
"""How long a rank may take from the begin of its backward pass to the collective operation."""


def run_with_fault(monkeypatch, out, fault=None, **settings):
    """Run a row with ``fault`` in its second rank; check that no process is left."""
    monkeypatch.setattr(ranks, "RANK_MODULE", FAKE)
    monkeypatch.setenv("TESTBED_TEST", str(out))
    if fault:
        monkeypatch.setenv("FAULT", fault)
    choices: dict[str, Any] = {"devices": 2, "strategy": "ddp", "time_limit_s": 120} | settings
    try:
        return run_row(spec(**choices), out, "the command")
    finally:
        assert find_tagged("TESTBED_TEST", str(out)) == []


def check_failure(monkeypatch, out, fault):
    """Run a row with one of FAILURES; check its result."""
    outcome, kind, reason = FAILURES[fault]
    result = run_with_fault(monkeypatch, out, fault)
    injected_at = float(re.search(r"fault injected at ([\d.]+)", (out / LOG_FILE).read_text())[1])
    assert time.time() - injected_at < 15
    assert (result.outcome, result.failure.kind, result.failure.rank) == (outcome, kind, 1)
    assert result.reason.startswith(reason)
    assert (result.failure.phase, result.failure.step, result.speed) == ("backward", 1, None)
    assert result.ranks[1].failure == result.failure.model_copy(update={"log": ()})
    assert result.ranks[0].outcome != "fits"
    assert result.memory.peak_gib > 0
    assert {path.name for path in out.iterdir()} == NAMES


def check_user_error(monkeypatch, out, fault):
    """Run a row with a user error, ``fault``; check that the worker raises it and writes no result."""
    with pytest.raises(InputError, match=r"^max_length = 8: too short$"):
        run_with_fault(monkeypatch, out, fault)
    assert not (out / RESULT_FILE).exists()


def let_time_limit_pass_after_hang(monkeypatch, out, limit_s):
    """Move the worker's clock to the time limit as soon as the second rank hangs and the first one waits for it."""
    monotonic = time.monotonic
    hung_s: list[float] = []

    def moved() -> float:
        log, progress = out / "rank-1" / LOG_FILE, out / "rank-0" / "progress.json"
        if not hung_s and log.exists() and "fault injected" in log.read_text() and "backward" in progress.read_text():
            hung_s.append(monotonic() + REACHES_COLLECTIVE_S)
        return monotonic() + (limit_s if hung_s and monotonic() > hung_s[0] else 0)

    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=moved, sleep=time.sleep, time=time.time))


@pytest.mark.usefixtures("ranks_start_warm")
def test_the_result_has_the_largest_memory_the_longest_step_and_the_mean_loss_of_the_ranks(monkeypatch, tmp_path):
    result = run_with_fault(monkeypatch, tmp_path)
    assert read_result(tmp_path / RESULT_FILE) == result
    assert [(rank.rank, rank.outcome) for rank in result.ranks] == [(0, "fits"), (1, "fits")]
    first, second = result.ranks
    assert second.memory.peak_gib > first.memory.peak_gib
    assert (result.memory, result.device.count) == (second.memory, 2)
    assert result.reason == f"fits, {format_size(second.memory.peak_gib)} at the peak, of rank 1"
    assert [set(rank.losses) for rank in result.ranks] == [{0.0}, {1.0}]
    assert result.losses == (0.5,) * 3
    assert result.speed.step_s == max(first.speed.step_s, second.speed.step_s)
    assert result.speed.samples_per_s == pytest.approx(4 / result.speed.step_s)
    log = (tmp_path / LOG_FILE).read_text()
    assert log.index("==== rank 0 ====") < log.index("==== rank 1 ====")
    assert {path.name for path in tmp_path.iterdir()} == NAMES


def test_ranks_of_two_accelerate_launchers_connect(monkeypatch, tmp_path):
    result = run_with_fault(monkeypatch, tmp_path, nodes=2, devices=1, launcher="accelerate")
    assert [rank.outcome for rank in result.ranks] == ["fits", "fits"]


def test_ranks_of_two_torchrun_launchers_connect(monkeypatch, tmp_path):
    result = run_with_fault(monkeypatch, tmp_path, nodes=2, devices=1, launcher="torchrun")
    assert [rank.outcome for rank in result.ranks] == ["fits", "fits"]


@pytest.mark.usefixtures("ranks_start_warm")
def test_ranks_end_at_the_same_step_even_if_the_step_times_of_one_rank_are_not_steady(monkeypatch, tmp_path):
    monkeypatch.setenv("SCATTER", "1")
    result = run_with_fault(monkeypatch, tmp_path, length="verdict", train_samples=80)
    assert [rank.speed.micro_steps for rank in result.ranks] == [12, 12]


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failure_of_one_rank_is_the_outcome_of_the_row_and_ends_all_ranks(monkeypatch, tmp_path, fault):
    check_failure(monkeypatch, tmp_path, fault)


def test_if_a_rank_hangs_the_stack_traces_of_all_ranks_are_written_to_the_log(monkeypatch, tmp_path):
    let_time_limit_pass_after_hang(monkeypatch, tmp_path, 25)
    result = run_with_fault(monkeypatch, tmp_path, "hang", time_limit_s=25)
    assert result.outcome == "timeout"
    assert [rank.outcome for rank in result.ranks] == ["timeout"] * 2
    assert re.match(
        r"rank \d: reached its time limit of 25 s, last seen in the backward phase at .*; the log has the stack traces",
        result.reason,
    )
    first, second = (tmp_path / LOG_FILE).read_text().split("==== rank 1 ====")
    assert "in all_reduce" in first
    assert "in hang" in second


def test_a_user_error_found_by_one_rank_is_raised_by_the_worker(monkeypatch, tmp_path):
    check_user_error(monkeypatch, tmp_path, "wrong")


def test_a_launcher_that_cannot_start_is_an_error_with_its_last_line(monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "LAUNCHER_MODULE", "experiments.no_such_module")
    result = run_with_fault(monkeypatch, tmp_path)
    assert (result.outcome, result.failure.phase) == ("error", "load")
    assert "No module named experiments.no_such_module" in result.reason


def test_gpus_and_threads_of_a_machine_are_divided_between_the_nodes_on_it():
    base = {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "OMP_NUM_THREADS": "8"}
    assert launcher_environments(base, 2, 2) == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "4,5"},
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "6,7"},
    ]
    assert launcher_environments(base, 1, 4) == [{"OMP_NUM_THREADS": "2"}]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in launcher_environments({}, 2, 2)] == ["0,1", "2,3"]
    no_gpus = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert launcher_environments(no_gpus, 2, 1) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert launcher_environments({}, 1, 1) == [{"OMP_NUM_THREADS": str(os.cpu_count())}]


def test_free_ports_differ_even_with_the_same_random_seed():
    found = set()
    for _ in range(5):
        random.seed(42)
        found.add(free_port())
    assert len(found) > 1


def test_a_port_that_is_returned_as_free_can_be_bound():
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_launcher_arguments_contain_nodes_devices_and_the_rendezvous_address():
    settings = spec(devices=4, nodes=2, batch_size=1, train_samples=8, strategy="ddp").settings
    assert " ".join(torchrun_arguments(settings, "1", "10.0.0.5", "29500")) == (
        "--nnodes 2 --nproc-per-node 4 --node-rank 1 --master-addr 10.0.0.5 --master-port 29500 --module"
    )
    arguments = " ".join(accelerate_arguments(settings, "1", "10.0.0.5", "29500"))
    assert "--num_machines 2 --num_processes 8 --machine_rank 1" in arguments
    assert "--main_process_ip 10.0.0.5 --main_process_port 29500" in arguments
