import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.results.gpu_load import OTHER_UTILIZATION
from experiments.results.provenance import code_sha256
from experiments.results.schema import (
    CHECKPOINTS_FOLDER,
    Measured,
    Memory,
    Phase,
    Progress,
    StageTimes,
    StageTimestamps,
    read_result,
)
from experiments.suites.row_spec import RowSpec
from experiments.training import worker
from experiments.training.distributed import local_node
from experiments.training.measure.telemetry import FIELDS
from experiments.training.worker import main, progress_line, run_row
from tests.support.processes.running import is_running
from tests.support.processes.waiting import wait_for
from tests.support.results.in_memory import CPU
from tests.support.training.tiny_rows import LORA, spec

FAKE = Path(__file__).parents[2] / "support" / "training" / "fake_trainer.py"
PYTHON = sys.executable
REPOSITORY = Path(__file__).parents[3]
MEASURED = Measured(outcome="oom", reason="out of GPU memory", device=CPU, memory=Memory(peak_gib=7.0), losses=(2.0,))


@pytest.fixture
def fake_trainer(tmp_path, monkeypatch):
    """Replace the trainer: the worker's Python runs the fake trainer with the trainer's arguments."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{PYTHON}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    measured = tmp_path / "measured-by-the-fake.json"
    measured.write_text(MEASURED.model_dump_json())
    monkeypatch.setenv("MEASURED", str(measured))
    monkeypatch.setattr(sys, "executable", str(python))
    return monkeypatch


def run_fake_row(fake, out, behavior, time_limit_s=30):
    fake.setenv("FAKE", behavior)
    return run_row(spec(time_limit_s=time_limit_s), out, "the command")


def test_the_trainer_s_measurements_become_the_result(fake_trainer, tmp_path):
    out = tmp_path / "made" / "row"
    result = run_fake_row(fake_trainer, out, "fits")
    assert read_result(out / "result.json") == result
    assert result.model_dump(include=Measured.model_fields.keys()) == MEASURED.model_dump()
    assert (result.spec, result.fingerprint) == (spec(time_limit_s=30), spec(time_limit_s=30).fingerprint)
    assert (result.code, result.command) == (code_sha256(), "the command")
    assert result.started_at.endswith("+00:00")
    assert result.elapsed_s > 0
    assert {path.name for path in out.iterdir()} == {
        "result.json", "spec.json", "log.txt", "telemetry.csv", "started.txt",
    }  # fmt: skip
    assert RowSpec.model_validate_json((out / "spec.json").read_bytes()) == result.spec


@pytest.mark.parametrize("how", ["fits", "killed"])
def test_the_checkpoints_are_removed_once_the_trainer_has_ended(fake_trainer, tmp_path, how):
    checkpoints = tmp_path / "row" / CHECKPOINTS_FOLDER
    (checkpoints / "checkpoint-100").mkdir(parents=True)
    run_fake_row(fake_trainer, tmp_path / "row", how)
    assert not checkpoints.exists()


def test_the_trainer_has_its_own_process_group_and_is_killed_first(fake_trainer, tmp_path):
    run_fake_row(fake_trainer, tmp_path / "row", "fits")
    pid, group, killed_first = (tmp_path / "row" / "started.txt").read_text().split()
    assert (group, killed_first) == (pid, "1000")
    assert group != str(os.getpgid(0))
    output = (tmp_path / "row" / "log.txt").read_text()
    assert output == f"arguments: -u -m experiments.training.rank {tmp_path}/row/spec.json {tmp_path}/row\n"


def test_after_a_user_error_there_is_no_result_not_even_an_old_one(fake_trainer, tmp_path):
    for name in ("result.json", "measured.json", "progress.json"):
        (tmp_path / name).write_text("old")
    with pytest.raises(InputError, match=r"^captions: has 3 captioned images, the row trains on 512$"):
        run_fake_row(fake_trainer, tmp_path, "reject")
    assert not [name for name in ("result.json", "measured.json", "progress.json") if (tmp_path / name).exists()]
    assert "the row trains on 512" in (tmp_path / "log.txt").read_text()


def test_a_killed_trainer_is_an_error_that_names_the_signal(fake_trainer, tmp_path):
    result = run_fake_row(fake_trainer, tmp_path, "killed")
    assert (result.outcome, result.failure.kind) == ("error", "signal 9")
    assert (result.failure.phase, result.failure.step, result.memory.peak_gib) == ("backward", 3, 1.5)
    assert result.reason == (
        "signal 9 last seen in the backward pass of step 3 (counted from 0): "
        "killed by SIGKILL, usually because the host ran out of memory, or because a user killed it"
    )
    assert result.failure.log[0].startswith("arguments: -u -m experiments.training.rank ")
    assert not (tmp_path / "progress.json").exists()


def test_a_row_whose_trainer_the_oom_killer_killed_has_the_outcome_host_oom(fake_trainer, tmp_path):
    kills = iter([4, 5])
    fake_trainer.setattr(worker, "_count_oom_kills", lambda: next(kills))
    result = run_fake_row(fake_trainer, tmp_path, "killed")
    assert (result.outcome, result.failure.kind) == ("host_oom", "signal 9")
    assert (
        result.reason
        == "out of host memory last seen in the backward pass of step 3 (counted from 0) (peak so far 1.5 GiB)"
    )


def test_out_of_memory_is_recognized_in_the_output_of_a_dead_trainer(fake_trainer, tmp_path):
    result = run_fake_row(fake_trainer, tmp_path, "oom")
    assert (result.outcome, result.failure.kind, result.failure.requested_gib) == ("oom", "exit code 1", 0.5)
    assert result.reason == (
        "out of GPU memory last seen in the backward pass of step 3 (counted from 0), 0.5 GiB more requested "
        "(peak so far 1.5 GiB)"
    )


def test_a_compiler_that_was_killed_is_named_with_the_line_of_the_log(fake_trainer, tmp_path):
    result = run_fake_row(fake_trainer, tmp_path, "compiler")
    assert result.reason == (
        "exit code 1 last seen while loading: c++: fatal error: Killed signal terminated program cc1plus "
        "(the compiler was killed, usually because the host ran out of memory)"
    )
    assert result.failure.log[-1] == "compilation terminated."


@pytest.mark.parametrize(
    ("behavior", "message"),
    [("error", "RuntimeError: shapes differ"), ("silent", "arguments: -u -m experiments.training.rank ")],
)
def test_a_trainer_that_fails_without_a_report_has_the_last_line_of_its_output_as_message(
    fake_trainer, tmp_path, behavior, message
):
    result = run_fake_row(fake_trainer, tmp_path, behavior)
    assert (result.outcome, result.failure.phase, result.failure.kind) == ("error", "load", "exit code 1")
    assert result.failure.message.startswith(message)
    assert (result.device.name, result.memory) == ("unknown", Memory())


def test_a_hanging_trainer_ends_at_its_time_limit_and_its_stack_traces_are_written_to_the_log(
    fake_trainer, tmp_path, capfd
):
    result = run_fake_row(fake_trainer, tmp_path, "hang", time_limit_s=2)
    assert (result.outcome, result.failure.kind, result.memory.peak_gib) == ("timeout", "timeout", 1.5)
    assert (
        result.reason == "reached its time limit of 2 s, last seen in the backward phase; the log has the stack traces"
    )
    assert "in hang" in (tmp_path / "log.txt").read_text()
    assert result.elapsed_s < 10
    assert not is_running(int((tmp_path / "started.txt").read_text().split()[0]))
    output = "micro-step 7 of 9: 1.25 GiB now, 1.5 GiB at the peak, at most 2 s left\n"
    assert capfd.readouterr().out == output


def test_telemetry_has_the_current_phase_even_within_a_micro_step(monkeypatch, tmp_path):
    seen: list[str] = []
    telemetry: Any = SimpleNamespace(phase="load")
    phases: Iterator[Phase] = iter(("forward", "backward", "optimizer step"))

    def progress(*_):
        seen.append(telemetry.phase)
        return Progress(phase=next(phases), step=0, micro_steps=7, planned_micro_steps=9, allocated_gib=1.0)

    monkeypatch.setattr(worker, "_read_row_progress", progress)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    ranks: Any = SimpleNamespace(all_ended=lambda: len(seen) == 3, any_failed=lambda: False)
    worker._wait_for_ranks(ranks, tmp_path, 60.0, telemetry)
    assert [*seen, telemetry.phase] == ["load", "forward", "backward", "optimizer step"]


def test_a_trainer_that_does_not_start_is_ended_at_the_time_limit_for_starting(fake_trainer, tmp_path):
    fake_trainer.setattr(worker, "START_LIMIT_S", 1.0)
    result = run_fake_row(fake_trainer, tmp_path, "never starts", time_limit_s=600)
    assert (result.outcome, result.failure.phase, result.times) == ("timeout", "load", None)
    assert result.reason == "did not start within 1 s, last seen in the load phase; the log has the stack traces"


def test_the_time_limit_begins_when_the_trainer_has_started(fake_trainer, tmp_path):
    assert run_fake_row(fake_trainer, tmp_path, "starts late", time_limit_s=1).outcome == "oom"


def test_the_times_of_the_stages_add_up_to_the_elapsed_time():
    times = worker.stage_times(
        StageTimestamps(started_at=103.0, began_at=104.5, ended_at=110.0), row_started_at=100.0, elapsed_s=12.0
    )
    assert times == StageTimes(start_s=3.0, build_s=1.5, train_s=5.5, end_s=2.0)


def test_the_interval_of_steady_steps_counts_from_the_start_of_the_row_like_telemetry():
    timestamps = StageTimestamps(
        started_at=103.0, began_at=104.5, ended_at=110.0, steady_from=106.0, steady_until=109.5
    )
    assert worker.steady_interval_s(timestamps, row_started_at=100.0) == (6.0, 9.5)
    unfinished = timestamps.model_copy(update={"steady_from": None, "steady_until": None})
    assert worker.steady_interval_s(unfinished, row_started_at=100.0) is None


def test_child_processes_of_the_trainer_are_killed(fake_trainer, tmp_path):
    assert run_fake_row(fake_trainer, tmp_path, "child").outcome == "oom"
    assert not is_running(int((tmp_path / "child.txt").read_text()))


def test_processes_that_survive_being_killed_are_named(fake_trainer, tmp_path):
    fake_trainer.setattr(local_node, "kill_tagged", lambda variable, value, within_s: [4711])
    with pytest.raises(TimeoutError, match=r"processes \[4711\] still run 15 s after they were killed"):
        run_fake_row(fake_trainer, tmp_path, "fits")


def test_the_oom_kill_counter_of_linux_can_be_read():
    assert worker._count_oom_kills() >= 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "micro-step 7 of 9: 1.234 GiB now, 0 GiB at the peak"),
        ({"allocated_gib": 0.0102}, "micro-step 7 of 9: 10.44 MiB now, 0 GiB at the peak"),
        ({"left_s": 61.7}, "micro-step 7 of 9: 1.234 GiB now, 0 GiB at the peak, at most 62 s left"),
    ],
)
def test_progress_is_printed_as_one_line(change, words):
    values: dict[str, Any] = {"allocated_gib": 1.234, **change}
    progress = Progress(phase="forward", step=3, micro_steps=7, planned_micro_steps=9, **values)
    assert progress_line(progress) == words


def run_main(monkeypatch, *arguments):
    """Return the exit code of the worker's main, called in this process."""
    monkeypatch.setattr(worker, "prefer_oom_kill", lambda: None)
    monkeypatch.setattr(sys, "argv", ["worker", *map(str, arguments)])
    return main()


@pytest.mark.parametrize("text", [None, "no json", "{}", json.dumps(spec().model_dump() | {"more": 1})])
def test_an_invalid_specification_is_rejected_in_one_line(monkeypatch, tmp_path, capsys, text):
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_text(text)
    assert run_main(monkeypatch, "--spec", path, "--out", tmp_path / "row") == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"{path}: not a valid row specification (")
    assert output.err.count("\n") == 1
    assert not (tmp_path / "row").exists()


@pytest.mark.parametrize(
    ("behavior", "code", "out", "err"),
    [
        ("fits", 0, "oom: out of GPU memory\n", ""),
        ("reject", 2, "", "captions: has 3 captioned images, the row trains on 512\n"),
    ],
)
def test_the_worker_process_prints_the_outcome_of_the_row_or_the_user_s_error(
    fake_trainer, tmp_path, capsys, behavior, code, out, err
):
    fake_trainer.setenv("FAKE", behavior)
    fake_trainer.setenv("TESTBED_COMMAND", "testbed run lab")
    (tmp_path / "row.json").write_text(spec().model_dump_json())
    assert run_main(fake_trainer, "--spec", tmp_path / "row.json", "--out", tmp_path / "row") == code
    output = capsys.readouterr()
    assert output.out == "lab/a on a100_80gb, tiny, as-taught\n" + out
    assert output.err == err
    if code == 0:
        assert read_result(tmp_path / "row" / "result.json").command == "testbed run lab"


def test_the_trainer_dies_with_a_killed_worker(fake_trainer, tmp_path):
    fake_trainer.setenv("FAKE", "hang")
    (tmp_path / "row.json").write_text(spec().model_dump_json())
    program = f"import sys; from experiments.training.worker import main; sys.executable = {sys.executable!r}; main()"
    started = subprocess.Popen(
        [PYTHON, "-c", program, "--spec", tmp_path / "row.json", "--out", tmp_path / "row"], cwd=REPOSITORY
    )
    note = tmp_path / "row" / "progress.json"
    wait_for(note.exists)
    trainer = int((tmp_path / "row" / "started.txt").read_text().split()[0])
    assert is_running(trainer)
    started.kill()
    started.wait()
    wait_for(lambda: not is_running(trainer))


@pytest.fixture(scope="module")
def finished_row(tmp_path_factory):
    """A real tiny row run by the real worker: its folder and the worker's output."""
    folder = tmp_path_factory.mktemp("worker")
    row = spec(precision="bf16-true", lora=LORA, max_steps=3, workers=1, time_limit_s=200)
    (folder / "row.json").write_text(row.model_dump_json())
    command = [PYTHON, "-m", "experiments.training.worker", "--spec", folder / "row.json", "--out", folder]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return folder, done.stdout


def test_a_real_row_is_run_and_its_result_is_complete(finished_row):
    folder, output = finished_row
    result = read_result(folder / "result.json")
    assert result.outcome == "fits"
    assert (result.speed.optimizer_steps, len(result.losses), result.device.kind) == (3, 3, "cpu")
    assert result.spec == RowSpec.model_validate_json((folder / "row.json").read_bytes())
    assert (result.fingerprint, result.code) == (result.spec.fingerprint, code_sha256())
    assert {"torch", "lightning", "transformers", "peft", "bitsandbytes"} <= result.versions.keys()
    assert "experiments.training.worker --spec" in result.command
    assert 0 < result.speed.train_s < result.times.train_s < result.elapsed_s
    assert sum(result.times.model_dump().values()) == pytest.approx(result.elapsed_s)
    assert min(result.times.model_dump().values()) > 0
    lines = output.splitlines()
    assert lines[0] == "lab/a on a100_80gb, tiny, as-taught"
    assert lines[-1] == f"fits: {result.reason}"
    assert any(line.startswith("micro-step ") for line in lines[1:-1])


def test_a_real_row_has_telemetry(finished_row):
    with (finished_row[0] / "telemetry.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == (*FIELDS, OTHER_UTILIZATION)
    assert len(rows) >= 4
    assert max(float(row["process_memory_gib"]) for row in rows if row["process_memory_gib"]) > 0.2
    telemetry = read_result(finished_row[0] / "result.json").telemetry
    assert telemetry["process_memory_gib_max"] > 0.2
    assert 0 < telemetry["sampling_core_share"] < 1


def test_a_real_row_leaves_no_intermediate_files(finished_row):
    names = {path.name for path in finished_row[0].iterdir()}
    assert {"result.json", "spec.json", "log.txt", "telemetry.csv"} <= names
    assert not names & {"measured.json", "progress.json", "checkpoints", "lightning_logs"}


def test_no_stage_has_a_negative_time_if_the_clock_was_set_back():
    timestamps = StageTimestamps(started_at=1000.0, began_at=400.0, ended_at=500.0)
    times = worker.stage_times(timestamps, 990.0, 120.0)
    assert times == StageTimes(start_s=10.0, build_s=0.0, train_s=100.0, end_s=610.0)
